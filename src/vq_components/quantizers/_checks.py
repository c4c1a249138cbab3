"""What comes in at the door of a quantizer, checked."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_vectors(z: Tensor, *, dim: int, channel_dim: int, name: str) -> None:
    """Raises unless ``z`` is a floating point tensor with ``dim`` channels along ``channel_dim``."""
    if not isinstance(z, Tensor):
        raise TypeError(f"{name} quantizes a tensor, but got {type(z).__name__}. Convert it with torch.as_tensor(...).")
    if not z.is_floating_point():
        raise TypeError(f"{name} quantizes floating point vectors, but got {z.dtype}. Convert them with .float().")
    has_channels = z.ndim >= 2 and -z.ndim <= channel_dim < z.ndim and z.ndim + channel_dim != 0
    if not has_channels or z.shape[channel_dim] != dim:
        raise ValueError(
            f"{name} quantizes vectors of {dim} channels along dimension {channel_dim}, "
            f"but got shape {tuple(z.shape)}. Build it for this number of channels, "
            f"or pass channel_dim for another layout."
        )


def check_mask(mask: Tensor, space: Sequence[int], *, name: str) -> None:
    """Raises unless ``mask`` is bool, of the input's shape without channels."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"{name} takes a bool mask, True where a position is live, but got {came}. "
            f"Convert numbers that are 1 there with .bool()."
        )
    if mask.shape != space:
        raise ValueError(
            f"{name} takes a mask in the input's shape without channels, {tuple(space)}, "
            f"but got {tuple(mask.shape)}. Expand or squeeze it."
        )


def check_index_shape(indices: Tensor, index_shape: tuple[int, ...], *, name: str) -> None:
    """Raises unless the shape of ``indices`` is that of a batch, followed by ``index_shape``."""
    depth = len(index_shape)
    if indices.ndim < 1 + depth or tuple(indices.shape[indices.ndim - depth :]) != index_shape:
        raise ValueError(
            f"{name} decodes indices of shape (B, *space{''.join(f', {q}' for q in index_shape)}), "
            f"but got {tuple(indices.shape)}. Pass them as encode returns them."
        )
