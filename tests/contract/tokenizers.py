"""The package's tokenizer, as the kit tests it."""

import torch

from vq_components import (
    Decoder,
    EMAVectorQuantizer,
    Encoder,
    GumbelQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
    VQModel,
)
from vq_components.testing import TokenizerSubject, TokenizerTraits

SIZES = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (), "resolution": 16, "z_channels": 8}
# Three levels of widths that 32 does not divide; dropout, and blocks that are computed again in the backward.
DEEP = {**SIZES, "ch": 16, "ch_mult": (1, 1, 2), "dropout": 0.1, "checkpoint_activations": True}


def subjects():
    torch.manual_seed(0)
    residual = ResidualQuantizer([VectorQuantizer(16, 4), VectorQuantizer(16, 4)])
    return [
        TokenizerSubject(
            VQModel(Encoder(in_channels=3, **sizes), quantizer, Decoder(out_ch=3, **sizes)),
            name=name,
            traits=TokenizerTraits(
                image_shape=(3, 16, 16),
                factor=2 ** (len(sizes["ch_mult"]) - 1),
                codebook_size=16,
                index_shape=quantizer.index_shape,
                local=sizes is not DEEP,  # where every token sees the whole image
                strict=True,
            ),
        )
        for name, quantizer, sizes in (
            ("vqgan", VectorQuantizer(16, 4), {**SIZES, "attn_resolutions": (8,)}),
            ("vqgan-ema", EMAVectorQuantizer(16, 8), SIZES),
            ("vqgan-residual-dropout", residual, DEEP),
            ("vqgan-gumbel", GumbelQuantizer(16, 5, in_channels=7), SIZES),
        )
    ]
