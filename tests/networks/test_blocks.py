"""The autoencoder's blocks against float64 formulas written out, and pixel by pixel."""

import pytest
import torch
from torch.nn import functional as F

from vq_components.networks import _blocks
from vq_components.networks._blocks import AttnBlock, Downsample, ResnetBlock, Upsample


def group_norm(x, norm):
    """In float64, group by group."""
    result = torch.empty_like(x)
    width = x.shape[1] // norm.num_groups
    for b in range(x.shape[0]):
        for start in range(0, x.shape[1], width):
            group = x[b, start : start + width]
            result[b, start : start + width] = (group - group.mean()) / (group.var(correction=0) + 1e-6).sqrt()
    return result * norm.weight[:, None, None] + norm.bias[:, None, None]


def randomize(module):
    """Norms start as identities, which would hide a missing weight; all in float64."""
    for parameter in module.double().parameters():
        torch.nn.init.normal_(parameter, 0.5, 0.5)
    return module


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(32, 32), (64, 32), (96, 32), (512, 32), (48, 6), (16, 2), (24, 3), (40, 5), (264, 24), (8, 1), (7, 1), (1, 1)],
)
def test_num_groups_is_32_where_it_divides_and_has_eight_channels_a_group_elsewhere(channels, groups):
    assert _blocks.num_groups(channels) == groups


def test_group_norm_is_the_originals():
    norm = _blocks.group_norm(64)
    assert (norm.num_groups, norm.num_channels, norm.eps, norm.affine) == (32, 64, 1e-6, True)


@pytest.mark.parametrize("out_channels", [4, 6])
def test_resnet_block_is_the_formula(out_channels):
    block = randomize(ResnetBlock(4, out_channels, dropout=0.0))
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)

    h = group_norm(x, block.norm1)
    h = F.conv2d(h * torch.sigmoid(h), block.conv1.weight, block.conv1.bias, padding=1)
    h = group_norm(h, block.norm2)
    h = F.conv2d(h * torch.sigmoid(h), block.conv2.weight, block.conv2.bias, padding=1)
    shortcut = x
    if out_channels != 4:
        matrix = block.nin_shortcut.weight[:, :, 0, 0]
        shortcut = torch.einsum("oc,bchw->bohw", matrix, x) + block.nin_shortcut.bias[:, None, None]
    torch.testing.assert_close(block(x), shortcut + h)


def test_attention_is_the_formula_position_by_position():
    block = randomize(AttnBlock(4))
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64)

    h = group_norm(x, block.norm)
    q, k, v = (
        torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], h) + conv.bias[:, None, None]
        for conv in (block.q, block.k, block.v)
    )
    mixed = torch.empty_like(x)
    for b in range(2):
        for i in range(3):
            for j in range(2):
                scores = torch.stack([q[b, :, i, j] @ k[b, :, m, n] / 4**0.5 for m in range(3) for n in range(2)])
                values = torch.stack([v[b, :, m, n] for m in range(3) for n in range(2)])
                mixed[b, :, i, j] = (scores.exp() / scores.exp().sum()) @ values
    projected = torch.einsum("oc,bchw->bohw", block.proj_out.weight[:, :, 0, 0], mixed)
    torch.testing.assert_close(block(x), x + projected + block.proj_out.bias[:, None, None])


def test_attention_can_use_a_kernel_that_does_not_keep_all_scores():
    block = AttnBlock(8)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):  # raises if it cannot
        assert block(torch.randn(1, 8, 4, 4)).shape == (1, 8, 4, 4)


def test_downsample_pads_at_the_right_and_the_bottom():
    """A kernel of a single 1 shows which pixel each tap reads; beyond the border it reads 0."""
    block = Downsample(1)
    x = torch.arange(1.0, 25).view(1, 1, 4, 6)
    padded = torch.zeros(6, 8)
    padded[:4, :6] = x
    for i in range(3):
        for j in range(3):
            with torch.no_grad():
                block.conv.weight.zero_()[0, 0, i, j] = 1
                block.conv.bias.zero_()
            expected = torch.stack([padded[i + row, j : j + 6 : 2] for row in (0, 2)])
            torch.testing.assert_close(block(x)[0, 0], expected)


def test_upsample_repeats_every_pixel_then_convolves():
    block = Upsample(2)
    x = torch.randn(1, 2, 2, 3)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(block(x), F.conv2d(repeated, block.conv.weight, block.conv.bias, padding=1))
