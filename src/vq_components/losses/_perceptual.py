"""Perceptual distance between images."""

import os
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ._trunk import TRUNKS, load_features, load_heads

# The published normalization divides by |f| + 1e-10: the same value, whose own gradient at f = 0 is NaN.
_EPS = 1e-20


class _Network(nn.Module):
    """The trunk, its linear heads and the distance between the features of two batches."""

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str, weights: str | os.PathLike[str] | None) -> None:
        super().__init__()
        heads = load_heads(net)
        self.features = load_features(net, weights)
        self.heads = dict(zip(TRUNKS[net].taps, (f"head{stage}" for stage in range(len(heads))), strict=True))
        for name, head in zip(self.heads.values(), heads, strict=True):
            self.register_buffer(name, head)
        # ImageNet's mean and standard deviation per channel, for images in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        x, y = ((batch.to(self.shift.dtype) - self.shift) / self.scale for batch in (images, reconstructions))
        distance = x.new_zeros(len(x))  # (B,)
        # Both go through the trunk side by side, so that of the images, which need no graph, one layer is held at once.
        for index, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if index in self.heads:
                difference = (_unit(x) - _unit(y)).square() * getattr(self, self.heads[index])  # (B, C, h, w)
                distance = distance + difference.sum(dim=1).mean(dim=(1, 2))
        return distance


def _unit(features: Tensor) -> Tensor:
    """Features ``(B, C, h, w)`` with every vector scaled to length 1; zero vectors stay zero."""
    return features * (features.square().sum(dim=1, keepdim=True) + _EPS).rsqrt()


class LPIPSLoss(nn.Module):
    """Learned perceptual distance between images: LPIPS, of 0 for equal images.

    ``d(x, x̂) = sum_l mean_hw sum_c w_lc (y_lc(x) - y_lc(x̂))^2``, where ``y_l`` are the features of layer ``l`` of a
    classification network, each vector scaled to unit length, and ``w_l`` weights that were fitted to human judgments.
    Network and weights are those of the ``lpips`` package (version 0.1), and so are values and gradient.

    The network is hidden: it is in eval mode and frozen whatever is called on this module or its owner, in neither
    ``parameters()`` nor ``state_dict()``, and moves with ``.to()``, ``.cuda()`` and ``.double()``. It computes in
    float32 at least: half-precision images are converted, autocast does not apply, ``.half()`` leaves it in float32.

    Its weights come from the first of these:

    1. ``weights=``, a local file: nothing is ever downloaded. Either torchvision's own checkpoint
       (``vgg16-397923af.pth`` for ``"vgg"``), or a ``.safetensors`` file with its keys ``features.N.weight`` and
       ``features.N.bias``;
    2. for ``"vgg"``, the file that the environment variable ``VQ_COMPONENTS_VGG16`` names, in the same formats;
    3. torch hub's cache, ``torch.hub.get_dir()``;
    4. torchvision's download into this cache.

    Args:
        net: ``"vgg"``, which VQ-GAN trains with, ``"alex"`` or ``"squeeze"``.
        weights: path of the network's weights.

    Raises:
        ValueError: from the constructor, if ``net`` is another name or the file holds something else; from a call, if
            shapes are not both ``(B, 3, H, W)`` or too small for the network, or if images on a CPU leave
            ``[-1.5, 1.5]``.
        TypeError: from a call, if images are not floating point.
        OSError: from the constructor, if the file does not exist or the download fails.
        ImportError: from the constructor, if the file is a ``.safetensors`` file and safetensors is not installed.

    Note:
        Images must be in ``[-1, 1]``. Images in ``[0, 1]`` cannot be told from dark ones: they give distances that are
        too small, without an error.

    References:
        Zhang, Isola, Efros, Shechtman, Wang (2018), "The Unreasonable Effectiveness of Deep Features as a Perceptual
        Metric".

    Example:
        Not run here, because it needs the weights::

            perceptual = LPIPSLoss("vgg", weights="vgg16-397923af.pth")
            distance = perceptual(images, reconstructions).mean()
    """

    def __init__(self, net: str = "vgg", *, weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        if net not in TRUNKS:
            raise ValueError(f"LPIPSLoss has the networks {', '.join(map(repr, TRUNKS))}, but got net={net!r}.")
        self.net = net
        # In a tuple, so it is no submodule: parameters(), state_dict(), train() and requires_grad_() do not see it.
        self._hidden = (_Network(net, weights).eval(),)

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Distances ``(B,)`` of two batches ``(B, 3, H, W)`` in ``[-1, 1]``, float32 unless the network is float64."""
        self._check(images, reconstructions)
        with torch.autocast(images.device.type, enabled=False):
            distance: Tensor = self._hidden[0](images, reconstructions)
        return distance

    def _check(self, images: Tensor, reconstructions: Tensor) -> None:
        for name, batch in (("images", images), ("reconstructions", reconstructions)):
            if not batch.is_floating_point():
                raise TypeError(
                    f"LPIPSLoss compares floating-point images in [-1, 1], but {name} are {batch.dtype}. "
                    "Convert 8-bit images with images / 127.5 - 1."
                )
        if images.shape != reconstructions.shape or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                "LPIPSLoss compares images and reconstructions of one shape (B, 3, H, W), but got "
                f"{tuple(images.shape)} and {tuple(reconstructions.shape)}. Repeat the channel of gray images."
            )
        size = TRUNKS[self.net].min_size
        if min(images.shape[2:]) < size:
            raise ValueError(
                f'LPIPSLoss("{self.net}") needs images of at least {size} x {size}, '
                f"but got {images.shape[2]} x {images.shape[3]}. Enlarge them, or use another network."
            )
        # Elsewhere than on a CPU, reading a value would make the host wait for the device.
        if torch.compiler.is_compiling() or images.device.type != "cpu" or images.numel() == 0:
            return
        largest = images.detach().abs().max().item()
        if largest > 1.5:
            raise ValueError(
                f"LPIPSLoss compares images in [-1, 1], but got an image with a value of size {largest:.4g}. "
                "Convert 8-bit images with images / 127.5 - 1."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LPIPSLoss":
        """Moves the hidden network along with its owner, except to half precision."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        cast(Any, self._hidden[0])._apply(move)
        cast(Any, super())._apply(fn, recurse)
        return self

    def extra_repr(self) -> str:
        """The constructor's argument, for ``repr``."""
        return f'"{self.net}"'
