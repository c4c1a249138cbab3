"""What the two passes of the VQ-GAN loss share."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..functional import _adversarial as adversarial

PAIRS = {
    "hinge": (adversarial.hinge_discriminator_loss, adversarial.hinge_generator_loss),
    "vanilla": (adversarial.vanilla_discriminator_loss, adversarial.vanilla_generator_loss),
    "non_saturating": (adversarial.non_saturating_discriminator_loss, adversarial.non_saturating_generator_loss),
}


class LossOutput(NamedTuple):
    """A player's loss, and what it is made of."""

    loss: Tensor
    """Weighted scalar, at least float32: call ``backward()`` on it."""
    terms: dict[str, Tensor]
    """Detached, unweighted float32 scalars for the log, with the same keys at every step."""


def as_terms(**values: Tensor) -> dict[str, Tensor]:
    """Scalars as they are logged: each in memory of its own, so that it can be summed over processes in place."""
    return {name: value.detach().to(torch.float32, copy=True) for name, value in values.items()}


def check_tensor(value: Tensor, *, name: str) -> Tensor:
    """Argument ``name`` of the loss as it is; raises unless it is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a tensor, but got {type(value).__name__}. Of what a model or quantizer returns, pass the "
            f"field: out.reconstructions, out.loss. Without a quantizer, quantizer_loss is torch.zeros(())."
        )
    return value


def check_inputs(images: Tensor, reconstructions: Tensor, cond: Tensor | None) -> None:
    """Raises unless images and reconstructions are floating point and alike, and ``cond`` fits on top of them."""
    for name, batch in (("images", images), ("reconstructions", reconstructions)):
        check_tensor(batch, name=name)
        if not batch.is_floating_point():
            raise TypeError(
                f"The loss compares floating-point images in [-1, 1], but {name} are {batch.dtype}. "
                "Convert 8-bit images with images / 127.5 - 1."
            )
    if images.shape != reconstructions.shape or images.ndim < 2:
        raise ValueError(
            "The loss compares images and reconstructions of one shape (B, C, H, W), but got "
            f"{tuple(images.shape)} and {tuple(reconstructions.shape)}."
        )
    if cond is not None and (len(cond), cond.shape[2:]) != (len(images), images.shape[2:]):
        raise ValueError(
            f"cond is given to the discriminator as further channels of images of shape {tuple(images.shape)}, "
            f"but got shape {tuple(cond.shape)}. Give it the same batch, height and width."
        )


def check_distance(distance: Tensor, batch: int) -> None:
    """Raises unless a perceptual module returned one number, or one per image."""
    if distance.shape not in ((), (batch,), (batch, 1, 1, 1)):
        raise ValueError(
            f"The perceptual module must return shape (), (B,) or (B, 1, 1, 1) for a batch of {batch}, "
            f"but returned {tuple(distance.shape)}. Average over the remaining dimensions."
        )


def with_condition(images: Tensor, cond: Tensor | None) -> Tensor:
    """Images ``(B, C, ...)``, with the channels of ``cond`` after their own."""
    return images if cond is None else torch.cat((images, cond.detach()), dim=1)


def check_settings(disc_loss: str, disc_start: int, gen_start: int, gen_ramp: int, weights: dict[str, float]) -> None:
    """Raises if a setting of the loss is out of range."""
    if disc_loss not in PAIRS:
        raise ValueError(f"disc_loss must be one of {', '.join(map(repr, PAIRS))}, but got {disc_loss!r}.")
    if gen_start < disc_start:
        raise ValueError(
            f"gen_start must not be before disc_start, but got gen_start={gen_start} and disc_start={disc_start}: "
            "the generator would follow an untrained discriminator."
        )
    if gen_ramp < 0:
        raise ValueError(f"gen_ramp is a number of steps, 0 for no ramp, but got {gen_ramp}.")
    for name, value in weights.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, but got {value}.")


def check_perceptual_weight(perceptual: nn.Module | None, weight: float) -> None:
    """Raises if there is a weight for a perceptual module, but no module."""
    if perceptual is None and weight != 0:
        raise ValueError(
            f"Without a perceptual module perceptual_weight must be 0, but got {weight}. "
            "Pass a module, for example LPIPSLoss(), or perceptual_weight=0."
        )
