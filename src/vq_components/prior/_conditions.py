"""What images are conditioned on: each condition becomes tokens that come before the image's own."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ._mingpt import check_tokens


class Window(NamedTuple):
    """A rectangle of a grid of tokens."""

    top: int
    left: int
    height: int
    width: int
    grid: tuple[int, int]  # height and width of the whole


class Condition(ABC):
    """Settings of a condition: how its values become tokens. It has no parameters; the transformer embeds the tokens.

    A condition of your own sets :attr:`vocab_size` and implements :meth:`encode`, and :meth:`at` if it has another
    value in each window of a larger image.
    """

    vocab_size: int
    """Number of tokens that it uses."""
    takes_value = True
    """Whether the prior is given a value for it. One that takes none cannot be dropped."""
    follows_window = False
    """Whether :meth:`at` makes its value from the window alone, so that sampling by windows is given none."""

    @abstractmethod
    def encode(self, value: Tensor | None, *, like: Tensor) -> Tensor:
        """Tokens ``(B, P)`` in ``[0, vocab_size)`` of a batch of values.

        Args:
            value: what the prior was given, or None where it takes none.
            like: the image's tokens ``(B, T)``, for the number of images and the device.
        """

    def at(self, value: Tensor | None, window: Window, *, like: Tensor) -> Tensor | None:
        """The value for a window of a larger image; the same everywhere unless told otherwise."""
        return value


@dataclass(frozen=True)
class StartToken(Condition):
    """A constant first token, for a prior without any other condition: ``p(s)``.

    Example:
        >>> StartToken().encode(None, like=torch.zeros(2, 16))
        tensor([[0],
                [0]])
    """

    vocab_size = 1
    takes_value = False

    def encode(self, value: Tensor | None, *, like: Tensor) -> Tensor:
        """Zeros ``(B, 1)``."""
        return torch.zeros(len(like), 1, dtype=torch.int64, device=like.device)


@dataclass(frozen=True)
class ClassLabel(Condition):
    """One of ``num_classes`` classes: values are integers ``(B,)``.

    Args:
        num_classes: number of classes.

    Example:
        >>> ClassLabel(10).encode(torch.tensor([3, 7]), like=torch.zeros(2, 16))
        tensor([[3],
                [7]])
    """

    num_classes: int

    def __post_init__(self) -> None:
        _check_positive(self, num_classes=self.num_classes)

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """Number of classes."""
        return self.num_classes

    def encode(self, value: Tensor | None, *, like: Tensor) -> Tensor:
        """Labels ``(B,)`` as tokens ``(B, 1)``."""
        labels = _value_of(self, value, like)
        if labels.shape != like.shape[:1]:
            raise ValueError(
                f"ClassLabel takes labels of shape ({len(like)},), but got {tuple(labels.shape)}. "
                "Pass one number per image; of one-hot rows it is their argmax(dim=1)."
            )
        advice = "Number the classes from 0 on, or raise num_classes."
        check_tokens(labels, self.num_classes, name="ClassLabel", noun="labels", advice=advice)
        return labels[:, None]


@dataclass(frozen=True)
class SpatialTokens(Condition):
    """The tokens of another image, such as a segmentation, edges, depth, or the same image at a low resolution.

    Values are what a second tokenizer's ``encode`` gives, ``(B, h, w)``, or the same flat, ``(B, h * w)``. In windows
    of a larger image they slide along, and must be a grid. It may be finer or coarser than the image's own: its window
    starts at the cell that the image's window starts in.

    Args:
        codebook_size: number of entries of the second tokenizer's codebook.

    Example:
        >>> SpatialTokens(8).encode(torch.tensor([[[0, 1], [2, 7]]]), like=torch.zeros(1, 16))
        tensor([[0, 1, 2, 7]])
    """

    codebook_size: int

    def __post_init__(self) -> None:
        _check_positive(self, codebook_size=self.codebook_size)

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """Number of entries of the second tokenizer's codebook."""
        return self.codebook_size

    def encode(self, value: Tensor | None, *, like: Tensor) -> Tensor:
        """Tokens ``(B, h, w)`` or ``(B, h * w)`` as ``(B, h * w)``."""
        tokens = _value_of(self, value, like)
        if tokens.ndim not in (2, 3) or len(tokens) != len(like):
            raise ValueError(
                f"SpatialTokens takes tokens of shape ({len(like)}, h, w) or ({len(like)}, h * w), "
                f"but got {tuple(tokens.shape)}. Pass one grid for each image."
            )
        check_tokens(tokens, self.codebook_size, name="SpatialTokens")
        return tokens.flatten(1)

    def at(self, value: Tensor | None, window: Window, *, like: Tensor) -> Tensor | None:
        """The part ``(B, h', w')`` of a grid ``(B, h, w)`` that lies under the window."""
        tokens = _value_of(self, value, like)
        sizes = [n * side for n, side in zip(tokens.shape[1:], (window.height, window.width), strict=False)]
        if tokens.ndim != 3 or any(size % n != 0 for size, n in zip(sizes, window.grid, strict=True)):
            raise ValueError(
                f"In windows of {window.height} x {window.width} in a grid of {window.grid[0]} x {window.grid[1]}, "
                f"SpatialTokens takes a grid (B, h, w) of which such a window covers whole cells, "
                f"but got shape {tuple(tokens.shape)}. Give it for the whole grid, in its proportions."
            )
        for dim, start in ((1, window.top), (2, window.left)):
            whole = window.grid[dim - 1]
            tokens = tokens.narrow(dim, start * tokens.shape[dim] // whole, sizes[dim - 1] // whole)
        return tokens


@dataclass(frozen=True)
class Coordinates(Condition):
    """Where a patch lies in the larger image that it was cut from.

    Values are numbers ``(B, 2)`` in ``[0, 1]``, along height and along width: 0 at the top or left border, 1 at the
    bottom or right one, in between ``start / (size of the image - size of the patch)``. Each becomes one token. In
    windows of a larger image they follow the window by themselves.

    Args:
        bins: number of tokens that ``[0, 1]`` is divided into.

    Example:
        >>> Coordinates(16).encode(torch.tensor([[0.0, 0.5], [1.0, 0.1]]), like=torch.zeros(2, 16))
        tensor([[ 0,  8],
                [15,  1]])
    """

    bins: int
    follows_window = True

    def __post_init__(self) -> None:
        _check_positive(self, bins=self.bins)

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """Number of bins; both directions share them."""
        return self.bins

    def encode(self, value: Tensor | None, *, like: Tensor) -> Tensor:
        """Numbers ``(B, 2)`` as tokens ``(B, 2)``."""
        place = _value_of(self, value, like)
        if place.shape != (len(like), 2) or not place.is_floating_point():
            raise ValueError(
                f"Coordinates takes floating point numbers in [0, 1] of shape ({len(like)}, 2), "
                f"but got {place.dtype} of shape {tuple(place.shape)}. Pass a row (down, right) for each image."
            )
        # Seen where it costs no wait for the device, as for tokens.
        can_see = place.device.type == "cpu" and not torch.compiler.is_compiling()
        if can_see and not bool(((place >= 0) & (place <= 1)).all()):
            raise ValueError(
                f"Coordinates takes numbers in [0, 1], but got {place.min():.3g} to {place.max():.3g}. "
                f"Divide a patch's start by the size of the image less that of the patch."
            )
        return (place.clamp(0, 1) * self.bins).long().clamp(max=self.bins - 1)

    def at(self, value: Tensor | None, window: Window, *, like: Tensor) -> Tensor | None:
        """Where the window lies in its grid; 0 along a side that it fills."""
        height, width = window.grid
        place = (window.top / max(height - window.height, 1), window.left / max(width - window.width, 1))
        return torch.tensor(place, device=like.device).expand(len(like), 2)


def _check_positive(condition: Condition, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{type(condition).__name__} needs a positive {name}, but got {size}.")


def _value_of(condition: Condition, value: Tensor | None, like: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{type(condition).__name__} takes a tensor as its value, but got {type(value).__name__}.")
    return value.to(like.device)
