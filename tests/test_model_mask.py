"""A mask of positions in a VQModel is its quantizer's."""

import copy

import pytest
import torch

from vq_components import Decoder, EMAVectorQuantizer, Encoder, VQModel


def test_masked_positions_are_the_quantizers():
    torch.manual_seed(0)
    config = {
        "ch": 32,
        "ch_mult": (1, 2),
        "num_res_blocks": 1,
        "attn_resolutions": (),
        "resolution": 8,
        "z_channels": 8,
    }
    model = VQModel(Encoder(in_channels=3, **config), EMAVectorQuantizer(16, 4), Decoder(out_ch=3, **config))
    images = torch.rand(2, 3, 8, 12) * 2 - 1
    shape = model.encode(images).shape
    mask = torch.rand(shape) > 0.4
    expected, other = copy.deepcopy(model.quantize), copy.deepcopy(model)
    out = model(images, mask)
    quantized, indices, loss, _ = expected(other.features(images), mask)
    assert torch.equal(out.indices, indices)
    assert out.loss == loss
    assert model.quantize.embedding.pending_counts.sum() == mask.sum()
    assert torch.equal(out.reconstructions, model.decoder(model.post_quant_conv(quantized)))
    assert torch.equal(model.encode(images, mask) == -1, ~mask)
    with pytest.raises(ValueError, match="mask"):
        model(images, mask[:, 1:])
