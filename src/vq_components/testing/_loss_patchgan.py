"""The patch discriminator of VQ-GAN, computed slowly in float64 from its saved tensors."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PatchGAN:
    """The network that a discriminator with the original's parameter names ``main.N`` is declared to be.

    Args:
        channels: of its input.
        ndf: channels after the first convolution.
        n_layers: number of convolutions of stride 2.
        actnorm: whether :class:`~vq_components.ActNorm` takes the place of batch normalization.
    """

    channels: int = 3
    ndf: int = 64
    n_layers: int = 3
    actnorm: bool = False

    @property
    def field(self) -> int:
        """Height and width of what a logit sees."""
        return 9 * int(2**self.n_layers) - 2

    @property
    def smallest(self) -> int:
        """Height and width of the smallest image that gives a logit."""
        return 3 * int(2**self.n_layers)

    def logits_shape(self, height: int, width: int) -> tuple[int, int]:
        """How many logits an image gives."""
        return height // 2**self.n_layers - 2, width // 2**self.n_layers - 2

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all saved tensors."""
        last = 3 * self.n_layers + 2
        widths = [self.ndf * min(2**n, 8) for n in range(self.n_layers + 1)]
        shapes: dict[str, tuple[int, ...]] = {
            "main.0.weight": (self.ndf, self.channels, 4, 4),
            "main.0.bias": (self.ndf,),
            f"main.{last}.weight": (1, widths[-1], 4, 4),
            f"main.{last}.bias": (1,),
        }
        for n in range(1, self.n_layers + 1):
            before, width, norm = widths[n - 1], widths[n], f"main.{3 * n}"
            shapes[f"main.{3 * n - 1}.weight"] = (width, before, 4, 4)
            if self.actnorm:
                shapes |= {f"main.{3 * n - 1}.bias": (width,), f"{norm}.initialized": ()}
                shapes |= {f"{norm}.loc": (1, width, 1, 1), f"{norm}.scale": (1, width, 1, 1)}
            else:
                named = ("weight", "bias", "running_mean", "running_var")
                shapes |= {f"{norm}.{name}": (width,) for name in named} | {f"{norm}.num_batches_tracked": ()}
        return shapes

    def __call__(self, state: dict[str, Tensor], images: Tensor, *, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of images, and the saved tensors after the forward."""
        after = {name: tensor.clone() for name, tensor in state.items()}
        x = _leaky(_convolved(after, 0, images, stride=2))
        for n in range(1, self.n_layers + 1):
            x = _convolved(after, 3 * n - 1, x, stride=2 if n < self.n_layers else 1)
            normalized = act_normalized if self.actnorm else batch_normalized
            x = _leaky(normalized(after, f"main.{3 * n}.", x, training=training))
        return _convolved(after, 3 * self.n_layers + 2, x, stride=1), after


def _convolved(state: dict[str, Tensor], layer: int, x: Tensor, *, stride: int) -> Tensor:
    bias = state.get(f"main.{layer}.bias")
    return F.conv2d(x, state[f"main.{layer}.weight"], bias, stride=stride, padding=1)


def _leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def batch_normalized(state: dict[str, Tensor], name: str, x: Tensor, *, training: bool) -> Tensor:
    """Batch normalization, with ``state`` as it is afterwards."""
    mean, var = state[name + "running_mean"], state[name + "running_var"]
    if training:
        mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
        unbiased = x.var(dim=(0, 2, 3), unbiased=True)
        state[name + "running_mean"] = 0.9 * state[name + "running_mean"] + 0.1 * mean
        state[name + "running_var"] = 0.9 * state[name + "running_var"] + 0.1 * unbiased
        state[name + "num_batches_tracked"] = state[name + "num_batches_tracked"] + 1
    factor = state[name + "weight"] / (var + 1e-5).sqrt()
    return (x - mean[:, None, None]) * factor[:, None, None] + state[name + "bias"][:, None, None]


def act_normalized(state: dict[str, Tensor], name: str, x: Tensor, *, training: bool) -> Tensor:
    """ActNorm, likewise."""
    if training and int(state[name + "initialized"]) == 0:
        values = x.movedim(1, 0).flatten(1)  # (C, N)
        shape = state[name + "loc"].shape
        state[name + "loc"] = -values.mean(dim=1).view(shape)
        state[name + "scale"] = 1 / (values.std(dim=1).view(shape) + 1e-6)
        state[name + "initialized"] = torch.ones_like(state[name + "initialized"])
    return state[name + "scale"] * (x + state[name + "loc"])
