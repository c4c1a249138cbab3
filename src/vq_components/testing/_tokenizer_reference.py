"""Encoder and decoder of the VQ-GAN from the entries of a checkpoint: slow, in float64, one formula after the other."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LAYER = r"(norm1|conv1|norm2|conv2|nin_shortcut|conv_shortcut)"
_ATTENTION = r"(norm|q|k|v|proj_out)"
_ENTRY = re.compile(
    rf"(conv_in|conv_out|norm_out|mid\.block_[12]\.{_LAYER}|mid\.attn_1\.{_ATTENTION}|"
    rf"(down|up)\.\d+\.(block\.\d+\.{_LAYER}|attn\.\d+\.{_ATTENTION}|downsample\.conv|upsample\.conv))\.(weight|bias)"
)


def is_published(names: Iterable[str], levels: str) -> bool:
    """Whether entries are those of the published encoder (``levels="down"``) or decoder (``"up"``), and no others."""
    found = set(names)
    needed = {"conv_in.weight", f"{levels}.0.block.0.conv1.weight", "mid.attn_1.q.weight", "conv_out.weight"}
    return needed <= found and all(_ENTRY.fullmatch(name) for name in found)


def published_groups(channels: int) -> int:
    """32; for channels that 32 does not divide, the most groups of at least eight channels each, or one."""
    if channels % 32 == 0:
        return 32
    groups = [count for count in range(1, 33) if channels % count == 0 and channels // count >= 8]
    return groups[-1] if groups else 1


@dataclass(frozen=True)
class Reference:
    """The published networks, as functions of their entries.

    Args:
        entries: a network's tensors in float64, by their published names.
        groups: groups of a normalization of so many channels.
        dropped: whether all that dropout can drop is dropped.
    """

    entries: Mapping[str, Tensor]
    groups: Callable[[int], int] = published_groups
    dropped: bool = False

    def encode(self, images: Tensor) -> Tensor:
        """What the encoder makes of images."""
        x = self._conv(images, "conv_in", (1, 1, 1, 1))
        for i in range(self._count("down.{}.block.0.conv1.weight")):
            x = self._level(x, f"down.{i}")
            if f"down.{i}.downsample.conv.weight" in self.entries:
                x = self._conv(x, f"down.{i}.downsample.conv", (0, 1, 0, 1), stride=2)
        return self._end(self._middle(x))

    def decode(self, latents: Tensor) -> Tensor:
        """What the decoder makes of latents."""
        x = self._middle(self._conv(latents, "conv_in", (1, 1, 1, 1)))
        for i in reversed(range(self._count("up.{}.block.0.conv1.weight"))):
            x = self._level(x, f"up.{i}")
            if f"up.{i}.upsample.conv.weight" in self.entries:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self._conv(x, f"up.{i}.upsample.conv", (1, 1, 1, 1))
        return self._end(x)

    def _count(self, pattern: str) -> int:
        return next(i for i in range(len(self.entries) + 1) if pattern.format(i) not in self.entries)

    def _level(self, x: Tensor, name: str) -> Tensor:
        for j in range(self._count(name + ".block.{}.conv1.weight")):
            x = self._block(x, f"{name}.block.{j}")
            if f"{name}.attn.{j}.q.weight" in self.entries:
                x = self._attention(x, f"{name}.attn.{j}")
        return x

    def _middle(self, x: Tensor) -> Tensor:
        return self._block(self._attention(self._block(x, "mid.block_1"), "mid.attn_1"), "mid.block_2")

    def _end(self, x: Tensor) -> Tensor:
        return self._conv(_swish(self._norm(x, "norm_out")), "conv_out", (1, 1, 1, 1))

    def _block(self, x: Tensor, name: str) -> Tensor:
        h = self._conv(_swish(self._norm(x, f"{name}.norm1")), f"{name}.conv1", (1, 1, 1, 1))
        h = _swish(self._norm(h, f"{name}.norm2"))
        h = self._conv(torch.zeros_like(h) if self.dropped else h, f"{name}.conv2", (1, 1, 1, 1))
        for shortcut in ("nin_shortcut", "conv_shortcut"):
            if f"{name}.{shortcut}.weight" in self.entries:
                border = self.entries[f"{name}.{shortcut}.weight"].shape[3] // 2
                x = self._conv(x, f"{name}.{shortcut}", (border,) * 4)
        return x + h

    def _attention(self, x: Tensor, name: str) -> Tensor:
        h = self._norm(x, f"{name}.norm")
        q, k, v = (self._conv(h, f"{name}.{part}").flatten(2) for part in "qkv")  # (B, C, N)
        share = (torch.einsum("bcn,bcm->bnm", q, k) / x.shape[1] ** 0.5).softmax(dim=2)
        mixed = torch.einsum("bnm,bcm->bcn", share, v).view_as(x)
        return x + self._conv(mixed, f"{name}.proj_out")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        groups = self.groups(x.shape[1])
        grouped = x.reshape(len(x), groups, x.shape[1] // groups, *x.shape[2:])
        centered = grouped - grouped.mean(dim=(2, 3, 4), keepdim=True)
        variance = centered.square().mean(dim=(2, 3, 4), keepdim=True)
        unit = (centered / (variance + 1e-6).sqrt()).reshape(x.shape)
        weight, bias = self.entries[f"{name}.weight"], self.entries[f"{name}.bias"]
        return unit * weight[:, None, None] + bias[:, None, None]

    def _conv(self, x: Tensor, name: str, border: Sequence[int] = (0, 0, 0, 0), *, stride: int = 1) -> Tensor:
        weight, bias = self.entries[f"{name}.weight"], self.entries.get(f"{name}.bias")
        return F.conv2d(F.pad(x, list(border)), weight, bias, stride=stride)


def _swish(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The published keywords of encoder and decoder.

    Args:
        channels: ``in_channels`` of the encoder, ``out_ch`` of the decoder.
        ch: unit of the channel counts.
        ch_mult: channels of the levels in units of ``ch``, the highest resolution first.
        num_res_blocks: blocks per level of the encoder; the decoder has one more.
        attn_resolutions: levels with attention, by their height.
        resolution: height of the highest level.
        z_channels: channels of the latents.
    """

    channels: int = 3
    ch: int = 32
    ch_mult: tuple[int, ...] = (1, 2)
    num_res_blocks: int = 1
    attn_resolutions: tuple[int, ...] = ()
    resolution: int = 8
    z_channels: int = 6

    def keywords(self, part: str) -> dict[str, Any]:
        """As the constructor of the ``"encoder"`` or ``"decoder"`` takes them."""
        values = dict(vars(self))
        values["in_channels" if part == "encoder" else "out_ch"] = values.pop("channels")
        return values

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the published entries of the ``"encoder"`` or ``"decoder"``."""
        widths, down = [self.ch * mult for mult in self.ch_mult], part == "encoder"
        low = widths[-1]
        shapes = {
            **_layer("conv_in", *((self.ch, self.channels) if down else (low, self.z_channels)), 3, 3),
            **_resnet("mid.block_1", low, low),
            **_attend("mid.attn_1", low),
            **_resnet("mid.block_2", low, low),
            **_layer("norm_out", low if down else widths[0]),
            **_layer("conv_out", *((self.z_channels, low) if down else (self.channels, widths[0])), 3, 3),
        }
        for i, width in enumerate(widths):
            level = f"{'down' if down else 'up'}.{i}"
            before = ([self.ch, *widths] if down else [*widths[1:], low])[i]
            for j in range(self.num_res_blocks + (not down)):
                shapes |= _resnet(f"{level}.block.{j}", before if j == 0 else width, width)
                if self.resolution // 2**i in self.attn_resolutions:
                    shapes |= _attend(f"{level}.attn.{j}", width)
            if down and i < len(widths) - 1:
                shapes |= _layer(f"{level}.downsample.conv", width, width, 3, 3)
            if not down and i > 0:
                shapes |= _layer(f"{level}.upsample.conv", width, width, 3, 3)
        return shapes


def _layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _resnet(name: str, before: int, after: int) -> dict[str, tuple[int, ...]]:
    return {
        **_layer(f"{name}.norm1", before),
        **_layer(f"{name}.conv1", after, before, 3, 3),
        **_layer(f"{name}.norm2", after),
        **_layer(f"{name}.conv2", after, after, 3, 3),
        **({} if before == after else _layer(f"{name}.nin_shortcut", after, before, 1, 1)),
    }


def _attend(name: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes = _layer(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= _layer(f"{name}.{part}", width, width, 1, 1)
    return shapes
