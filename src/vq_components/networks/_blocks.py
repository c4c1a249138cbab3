"""Building blocks of the autoencoder, under the parameter names of the original VQ-GAN."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def check_images(images: Tensor, *, name: str, channels: int | None = None) -> None:
    """Raises unless ``images`` are ``(B, C, H, W)``, with ``channels`` channels if given, in floating point."""
    if not isinstance(images, Tensor):
        raise TypeError(
            f"{name} takes a tensor of images, but got {type(images).__name__}. "
            f"Convert arrays with torch.as_tensor(...); of a loader's batch, pass the images alone."
        )
    if images.ndim != 4:
        raise ValueError(
            f"{name} takes images of shape (B, C, H, W), but got shape {tuple(images.shape)}. "
            f"Pass a batch, a single image as images[None]."
        )
    if channels is not None and images.shape[1] != channels:
        raise ValueError(
            f"{name} takes images of shape (B, {channels}, H, W), but got shape {tuple(images.shape)}. "
            f"Reorder or convert the images, or build {name} for {images.shape[1]} channels."
        )
    if not images.is_floating_point():
        raise TypeError(
            f"{name} takes floating-point images in [-1, 1], but got {images.dtype}. "
            f"Convert 8-bit images with images / 127.5 - 1."
        )


def check_positive(name: str, **values: int) -> None:
    """Raises unless all ``values`` are at least 1."""
    for argument, value in values.items():
        if value < 1:
            raise ValueError(f"{name} needs a positive {argument}, but got {argument}={value}. Pass 1 or more.")


def run(module: nn.Module, x: Tensor, *, recompute: bool) -> Tensor:
    """``module(x)``; with ``recompute``, a training forward keeps only ``x`` and the backward runs ``module`` again."""
    if recompute and module.training and torch.is_grad_enabled():
        result: Tensor = checkpoint(module, x, use_reentrant=False)
    else:
        result = module(x)
    return result


def num_groups(channels: int) -> int:
    """Groups of a normalization: the original's 32 wherever 32 divides ``channels``.

    Elsewhere, where the original cannot be built, the most groups that have at least eight channels each, or one
    group. Groups of few channels lose the brightness and color of an image, which are means over all positions.
    """
    if channels % 32 == 0:
        return 32
    return max((groups for groups in range(1, 33) if channels % groups == 0 and channels >= 8 * groups), default=1)


def group_norm(channels: int) -> nn.GroupNorm:
    """The original's normalization, with a number of groups that divides ``channels``."""
    return nn.GroupNorm(num_groups(channels), channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """``x + conv2(dropout(silu(norm2(conv1(silu(norm1(x)))))))``, ``(B, C, H, W) -> (B, C', H, W)``.

    The sum's ``x`` goes through the 1x1 convolution ``nin_shortcut`` where the number of channels changes.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        # Identity has no entry in the state_dict, as the original has none here.
        self.nin_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        result: Tensor = self.nin_shortcut(x) + h
        return result


class AttnBlock(nn.Module):
    """``x + proj_out(softmax(q k^T / sqrt(C)) v)``, every position attending to all, ``(B, C, H, W)`` in and out.

    ``q``, ``k``, ``v`` are 1x1 convolutions of ``norm(x)``; there is a single head.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # Four dimensions with the channels dense, or no kernel but the one that keeps all (H W)^2 scores takes them.
        q, k, v = (rearrange(conv(h), "b c h w -> b 1 (h w) c").contiguous() for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)  # (B, 1, H W, C)
        result: Tensor = x + self.proj_out(rearrange(h, "b 1 (h w) c -> b c h w", h=x.shape[2]))
        return result


class Downsample(nn.Module):
    """Convolution of stride 2, padded at the right and the bottom only: ``(B, C, H, W) -> (B, C, H/2, W/2)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return result


class Upsample(nn.Module):
    """Repeats every pixel 2x2, then convolves: ``(B, C, H, W) -> (B, C, 2H, 2W)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return result


class Level(nn.Module):
    """ResNet blocks of one resolution, each followed by an attention block if ``attention``.

    Args:
        in_channels: channels that come in.
        out_channels: channels of every block's result.
        num_blocks: number of ResNet blocks.
        attention: whether there are attention blocks.
        dropout: share of activations that each ResNet block drops in training.
        recompute: whether a training forward keeps only each block's input.
        downsample: whether the resolution is halved after the blocks.
        upsample: whether the resolution is doubled after the blocks.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_blocks: int,
        attention: bool,
        dropout: float,
        recompute: bool,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.block = nn.ModuleList(ResnetBlock(*pair, dropout=dropout) for pair in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(out_channels) for _ in range(num_blocks) if attention)
        self.downsample = Downsample(out_channels) if downsample else nn.Identity()
        self.upsample = Upsample(out_channels) if upsample else nn.Identity()
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x = run(block, x, recompute=self.recompute)
            if len(self.attn) > 0:
                x = run(self.attn[j], x, recompute=self.recompute)
        result: Tensor = self.upsample(self.downsample(x))
        return result


class Middle(nn.Module):
    """ResNet block, attention, ResNet block at the lowest resolution, ``(B, C, H, W)`` in and out."""

    def __init__(self, channels: int, *, dropout: float, recompute: bool) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout=dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, dropout=dropout)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        for module in (self.block_1, self.attn_1, self.block_2):
            x = run(module, x, recompute=self.recompute)
        return x
