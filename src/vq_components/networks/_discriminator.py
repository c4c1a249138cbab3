"""Patch discriminator of the VQ-GAN, and the normalization that it can be built with."""

import torch
from torch import Tensor, nn

from .._distributed import all_reduce_sum_
from ._blocks import check_images, check_positive


class ActNorm(nn.Module):
    """Scale and shift per channel that make the first training batch standard, and are parameters from then on.

    ``scale * (x + loc)``; the first training forward sets ``loc = -mean(x)`` and ``scale = 1 / (std(x) + 1e-6)``, per
    channel over all positions of the batch, with the unbiased standard deviation. Unlike in batch normalization, a
    sample's result does not depend on the rest of its batch (but in that first forward).

    The first batch is that of all processes together, so that all start alike; as with ``SyncBatchNorm``, all have to
    run their training forwards equally often. A batch without a standard deviation (fewer than two values per channel)
    or with values that are not finite does not start the layer; in eval mode nothing does. Every training forward
    computes the statistics, in float32 at least: to skip them once started, the host would have to read
    ``initialized``, and for that wait until the device has caught up. Under ``fully_shard``, what a forward writes to
    parameters is lost: run one training forward before, or leave this layer's parameters unsharded.

    Args:
        num_features: number of channels C.

    Attributes:
        loc: parameter ``(1, C, 1, 1)``.
        scale: parameter ``(1, C, 1, 1)``.
        initialized: saved ``uint8`` scalar, 1 after the start.

    Raises:
        ValueError: from the constructor, if ``num_features`` is not positive; from a call, if ``x`` is neither
            ``(B, C, H, W)`` nor ``(B, C)``.

    References:
        Kingma, Dhariwal (2018), "Glow: Generative Flow with Invertible 1x1 Convolutions". Their s is ``scale``, their b
        is ``scale * loc``.

    Example:
        >>> from vq_components import ActNorm
        >>> norm = ActNorm(2)
        >>> norm(torch.tensor([[0.0, 10.0], [2.0, 14.0], [4.0, 18.0]])).detach()  # starts here
        tensor([[-1.0000, -1.0000],
                [ 0.0000,  0.0000],
                [ 1.0000,  1.0000]])
        >>> norm(torch.tensor([[6.0, 22.0]])).detach()
        tensor([[2.0000, 2.0000]])
    """

    initialized: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        check_positive("ActNorm", num_features=num_features)
        self.num_features = num_features
        self.loc = nn.Parameter(torch.zeros(1, num_features, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, num_features, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Normalized ``x``, of its shape and dtype: ``(B, C, H, W)`` or ``(B, C)``."""
        if x.ndim not in (2, 4) or x.shape[1] != self.num_features:
            raise ValueError(
                f"ActNorm normalizes {self.num_features} channels of (B, C, H, W) or (B, C), "
                f"but got shape {tuple(x.shape)}. Reorder the dimensions, or change num_features."
            )
        if x.ndim == 2:
            return self.forward(x[:, :, None, None])[:, :, 0, 0]
        if self.training:
            self._start_(x)
        # A copy, because the backward keeps what x is multiplied with, and a second forward before it writes to the
        # parameter in place, if only the same values.
        return (self.scale.clone() * (x + self.loc)).to(x.dtype)

    @torch.no_grad()
    def _start_(self, x: Tensor) -> None:
        """Sets the parameters from ``(B, C, H, W)``, if nothing has yet: decided on the device, not in Python."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        sums = torch.cat([x.new_full((1,), x.numel() // self.num_features), x.sum(dim=(0, 2, 3))])  # (1 + C,)
        all_reduce_sum_(sums)
        count = sums[0]
        mean = (sums[1:] / count.clamp(min=1)).view_as(self.loc)
        squares = (x - mean).square().sum(dim=(0, 2, 3))  # (C,)
        all_reduce_sum_(squares)
        std = (squares / (count - 1).clamp(min=1)).sqrt().view_as(self.scale)

        starts = (self.initialized == 0) & (count >= 2) & (mean + std).isfinite().all()
        self.loc.copy_(torch.where(starts, -mean, self.loc))
        self.scale.copy_(torch.where(starts, 1 / (std + 1e-6), self.scale))
        self.initialized.copy_(self.initialized | starts)


class NLayerDiscriminator(nn.Module):
    """PatchGAN: judges overlapping patches of an image, one logit each, positive for a real one.

    Convolutions of kernel 4 with ``LeakyReLU(0.2)`` between them: ``n_layers`` of stride 2, two of stride 1.
    ``(B, input_nc, H, W) -> (B, 1, h, w)``, where ``h = H // 2**n_layers - 2``, and ``w`` likewise. A logit sees a
    square of ``9 * 2**n_layers - 2`` pixels a side: 34, 70, 142 for 2, 3, 4 layers. Weights start from N(0, 0.02),
    those of the batch normalizations from N(1, 0.02). Parameter names are those of the original, ``main.N``.

    Args:
        input_nc: channels of the images; for a conditional discriminator, of images and condition concatenated.
        ndf: channels after the first convolution. They double from layer to layer, up to eight times ``ndf``.
        n_layers: number of convolutions of stride 2.
        use_actnorm: normalize with :class:`ActNorm` instead of batch normalization. The convolutions before it then
            have a bias, as in the original.

    Attributes:
        min_input_size: height and width of the smallest images that give a logit.

    Raises:
        ValueError: from the constructor, if a number is not positive; from a call, if images are not
            ``(B, input_nc, H, W)`` or smaller than ``min_input_size``.
        TypeError: from a call, if images are not floating point.

    References:
        Isola, Zhu, Zhou, Efros (2017), "Image-to-Image Translation with Conditional Adversarial Networks". Their
        C64-C128-C256-C512, the 70 x 70 discriminator, is the default here.

    Example:
        >>> from vq_components import NLayerDiscriminator
        >>> discriminator = NLayerDiscriminator(ndf=8)
        >>> discriminator.min_input_size
        24
        >>> discriminator(torch.rand(2, 3, 64, 64) * 2 - 1).shape
        torch.Size([2, 1, 6, 6])
    """

    def __init__(self, input_nc: int = 3, ndf: int = 64, n_layers: int = 3, *, use_actnorm: bool = False) -> None:
        super().__init__()
        check_positive("NLayerDiscriminator", input_nc=input_nc, ndf=ndf, n_layers=n_layers)
        self.input_nc = input_nc
        self.n_layers = n_layers

        widths = [ndf * min(2**n, 8) for n in range(n_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(input_nc, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for n in range(1, n_layers + 1):
            stride = 2 if n < n_layers else 1
            layers += [
                # Batch normalization subtracts the mean, and a bias with it.
                nn.Conv2d(widths[n - 1], widths[n], 4, stride=stride, padding=1, bias=use_actnorm),
                ActNorm(widths[n]) if use_actnorm else nn.BatchNorm2d(widths[n]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    @property
    def min_input_size(self) -> int:
        """Height and width of the smallest images that give a logit."""
        # Stride 2 halves, rounding down; each of the two convolutions of stride 1 then takes off a row.
        return 3 * int(2**self.n_layers)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, 1, h, w)`` of images ``(B, input_nc, H, W)`` in ``[-1, 1]``, one per patch."""
        check_images(images, name="NLayerDiscriminator", channels=self.input_nc)
        if min(images.shape[2:]) < self.min_input_size:
            raise ValueError(
                f"NLayerDiscriminator with n_layers={self.n_layers} needs images of at least "
                f"{self.min_input_size} x {self.min_input_size}, but got {images.shape[2]} x {images.shape[3]}. "
                f"Pass larger images, or lower n_layers."
            )
        logits: Tensor = self.main(images)
        return logits
