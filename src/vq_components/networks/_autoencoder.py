"""Encoder and decoder of the VQ-GAN."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ._blocks import Level, Middle, check_images, check_positive, group_norm


class _Levels(NamedTuple):
    """What the levels of an encoder or decoder look like, from the highest resolution to the lowest."""

    widths: list[int]
    attention: list[bool]
    stride: int


def _plan_levels(
    name: str,
    *,
    ch: int,
    ch_mult: Sequence[int],
    num_res_blocks: int,
    attn_resolutions: Sequence[int],
    resolution: int,
    dropout: float,
) -> _Levels:
    """Checks the arguments that encoder and decoder share, and translates them to a list per level."""
    if len(ch_mult) == 0 or min(ch_mult) < 1:
        raise ValueError(
            f"{name} has one level per entry of ch_mult and needs at least one, all positive, "
            f"but got ch_mult={list(ch_mult)}. Pass for example ch_mult=[1, 1, 2, 2, 4]."
        )
    check_positive(name, ch=ch, num_res_blocks=num_res_blocks)
    if not 0 <= dropout <= 1:
        raise ValueError(
            f"{name} drops a share of activations, but got dropout={dropout}. Pass a number in [0, 1], 0 for none."
        )
    stride = 2 ** (len(ch_mult) - 1)
    if resolution < stride or resolution % stride != 0:
        raise ValueError(
            f"{name} with {len(ch_mult)} levels needs a resolution that is a multiple of {stride}, "
            f"but got resolution={resolution}. Change resolution or the length of ch_mult."
        )
    resolutions = [resolution // 2**i for i in range(len(ch_mult))]
    if strays := sorted(set(attn_resolutions) - set(resolutions)):
        raise ValueError(
            f"{name} has levels of resolution {resolutions}, but attn_resolutions also names {strays}, "
            f"where no attention can be. Pass a subset of the levels, counted from resolution={resolution}."
        )
    return _Levels([ch * mult for mult in ch_mult], [level in attn_resolutions for level in resolutions], stride)


class Encoder(nn.Module):
    """Convolutional encoder of the VQ-GAN: images to a grid of latent vectors.

    One level per entry of ``ch_mult``: ``num_res_blocks`` ResNet blocks of ``ch * ch_mult[i]`` channels, then (but at
    the last level) a convolution of stride 2; then two more ResNet blocks with attention between them.
    ``(B, in_channels, H, W) -> (B, z_channels, H/s, W/s)`` with ``s = stride = 2 ** (len(ch_mult) - 1)``.

    Keywords and parameter names are those of the original, so that configs and checkpoints carry over. Its ``double_z``
    (always False in a VQ-GAN), ``out_ch`` and other keywords that did nothing here are left out.

    Args:
        ch: unit of the channel counts.
        ch_mult: channels of each level in units of ``ch``, from the highest resolution to the lowest.
        num_res_blocks: ResNet blocks per level.
        attn_resolutions: levels with an attention block after each ResNet block, named by their height when images of
            height ``resolution`` come in. Images of another size have attention at the same levels.
        in_channels: channels of the images.
        resolution: height of the images that ``attn_resolutions`` refers to; nothing else depends on it.
        z_channels: channels of the result.
        dropout: share of activations that each ResNet block drops in training.
        checkpoint_activations: keep only the inputs of the blocks in a training forward and compute the rest again in
            the backward: less memory for a second forward, the same values and gradients, dropout included.

    Normalization is ``GroupNorm`` of 32 groups. Channel counts that 32 does not divide, which the original cannot be
    built with, get the most groups that have at least eight channels each.

    Attributes:
        in_channels: as given.
        z_channels: as given.
        stride: pixels per latent position, along height and along width.

    Raises:
        ValueError: from the constructor, if a value is out of range or an entry of ``attn_resolutions`` is no level's;
            from a call, if images are not ``(B, in_channels, H, W)`` or not of a size that ``stride`` divides.
        TypeError: from a call, if images are not floating point.

    References:
        Esser, Rombach, Ommer (2021), "Taming Transformers for High-Resolution Image Synthesis"; the blocks are those of
        Ho, Jain, Abbeel (2020), "Denoising Diffusion Probabilistic Models".

    Example:
        >>> import torch
        >>> from vq_components import Encoder
        >>> encoder = Encoder(
        ...     ch=32, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[16],
        ...     in_channels=3, resolution=32, z_channels=8
        ... )
        >>> encoder.stride
        2
        >>> encoder(torch.rand(1, 3, 32, 48) * 2 - 1).shape
        torch.Size([1, 8, 16, 24])
    """

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        in_channels: int,
        resolution: int,
        z_channels: int,
        dropout: float = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        widths, attention, self.stride = _plan_levels(
            "Encoder",
            ch=ch,
            ch_mult=ch_mult,
            num_res_blocks=num_res_blocks,
            attn_resolutions=attn_resolutions,
            resolution=resolution,
            dropout=dropout,
        )
        check_positive("Encoder", in_channels=in_channels, z_channels=z_channels)
        self.in_channels = in_channels
        self.z_channels = z_channels

        channels = [ch, *widths]  # what each level receives, then the last one's result
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                channels[i],
                channels[i + 1],
                num_blocks=num_res_blocks,
                attention=attention[i],
                dropout=dropout,
                recompute=checkpoint_activations,
                downsample=i < len(widths) - 1,
            )
            for i in range(len(widths))
        )
        self.mid = Middle(widths[-1], dropout=dropout, recompute=checkpoint_activations)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Latents ``(B, z_channels, H/stride, W/stride)`` of images ``(B, in_channels, H, W)`` in ``[-1, 1]``."""
        check_images(images, name="Encoder", channels=self.in_channels)
        height, width = images.shape[2:]
        if height % self.stride != 0 or width % self.stride != 0 or 0 in (height, width):
            raise ValueError(
                f"Encoder needs images whose height and width are multiples of {self.stride}, "
                f"but got {height} x {width}. Resize, crop or pad the images."
            )
        h = self.conv_in(images)
        for level in self.down:
            h = level(h)
        h = self.mid(h)
        result: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return result


class Decoder(nn.Module):
    """Convolutional decoder of the VQ-GAN: a grid of latent vectors to images.

    Two ResNet blocks with attention between them; then one level per entry of ``ch_mult``, from its last to its first:
    ``num_res_blocks + 1`` ResNet blocks of ``ch * ch_mult[i]`` channels and (but at the first entry) a doubling of the
    resolution. ``(B, z_channels, h, w) -> (B, out_ch, h * s, w * s)`` with ``s = stride = 2 ** (len(ch_mult) - 1)``.

    Keywords and parameter names are those of the original: ``up.0`` is the level of the highest resolution, which comes
    last. The same config builds :class:`Encoder` and Decoder, but for ``in_channels`` there and ``out_ch`` here.

    Args:
        ch: unit of the channel counts.
        out_ch: channels of the images.
        ch_mult: channels of each level in units of ``ch``, from the highest resolution to the lowest.
        num_res_blocks: ResNet blocks per level of the encoder; the decoder has one more per level.
        attn_resolutions: levels with an attention block after each ResNet block, named by their height when images of
            height ``resolution`` come out. Images of another size have attention at the same levels.
        resolution: height of the images that ``attn_resolutions`` refers to; nothing else depends on it.
        z_channels: channels of the latent vectors.
        dropout: share of activations that each ResNet block drops in training.
        checkpoint_activations: keep only the inputs of the blocks in a training forward and compute the rest again in
            the backward, as in :class:`Encoder`.

    Attributes:
        z_channels: as given.
        out_ch: as given.
        stride: pixels per latent position, along height and along width.

    Raises:
        ValueError: from the constructor, if a value is out of range or an entry of ``attn_resolutions`` is no level's;
            from a call, if ``z`` is not ``(B, z_channels, h, w)``.

    References:
        Esser, Rombach, Ommer (2021), "Taming Transformers for High-Resolution Image Synthesis".

    Example:
        >>> import torch
        >>> from vq_components import Decoder
        >>> decoder = Decoder(
        ...     ch=32, out_ch=3, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[16], resolution=32, z_channels=8
        ... )
        >>> decoder(torch.randn(1, 8, 16, 24)).shape
        torch.Size([1, 3, 32, 48])
        >>> decoder.last_layer.shape  # what functional.adaptive_weight takes
        torch.Size([3, 32, 3, 3])
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        resolution: int,
        z_channels: int,
        dropout: float = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        widths, attention, self.stride = _plan_levels(
            "Decoder",
            ch=ch,
            ch_mult=ch_mult,
            num_res_blocks=num_res_blocks,
            attn_resolutions=attn_resolutions,
            resolution=resolution,
            dropout=dropout,
        )
        check_positive("Decoder", out_ch=out_ch, z_channels=z_channels)
        self.out_ch = out_ch
        self.z_channels = z_channels

        channels = [*widths, widths[-1]]  # each level's result, then what the lowest one receives
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], dropout=dropout, recompute=checkpoint_activations)
        self.up = nn.ModuleList(
            Level(
                channels[i + 1],
                channels[i],
                num_blocks=num_res_blocks + 1,
                attention=attention[i],
                dropout=dropout,
                recompute=checkpoint_activations,
                upsample=i > 0,
            )
            for i in range(len(widths))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_ch, 3, padding=1)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the last convolution, at which the adaptive weight of the adversarial loss is measured."""
        return cast(nn.Parameter, self.conv_out.weight)

    def forward(self, z: Tensor) -> Tensor:
        """Images ``(B, out_ch, h * stride, w * stride)`` of ``z`` ``(B, z_channels, h, w)``.

        Trained on images in ``[-1, 1]``, the result is about there, too; nothing clamps it.
        """
        if z.ndim != 4 or z.shape[1] != self.z_channels:
            raise ValueError(
                f"Decoder takes latent vectors of shape (B, {self.z_channels}, H, W), but got shape {tuple(z.shape)}. "
                f"Reorder the dimensions, or build Decoder with another z_channels."
            )
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        result: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return result
