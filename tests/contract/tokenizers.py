"""The package's tokenizer, as the kit tests it."""

import torch

from vq_components import Decoder, EMAVectorQuantizer, Encoder, VectorQuantizer, VQModel
from vq_components.testing import TokenizerSubject, TokenizerTraits

SIZES = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "resolution": 16, "z_channels": 8}


def subjects():
    torch.manual_seed(0)
    traits = TokenizerTraits(image_shape=(3, 16, 16), factor=2, codebook_size=16, strict=True)
    return [
        TokenizerSubject(
            VQModel(
                Encoder(in_channels=3, attn_resolutions=attention, **SIZES),
                quantizer,
                Decoder(out_ch=3, attn_resolutions=attention, **SIZES),
            ),
            name=name,
            traits=traits,
        )
        for name, quantizer, attention in (
            ("vqgan", VectorQuantizer(16, 4), (8,)),
            ("vqgan-ema", EMAVectorQuantizer(16, 8), ()),
        )
    ]
