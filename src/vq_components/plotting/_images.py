"""Pictures of tokens and reconstructions."""

import math

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ._figure import axes_or_new


def plot_tokens(indices: Tensor, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draws token maps side by side, a color for each entry.

    Args:
        indices: ``(h, w)`` or ``(B, h, w)`` integers; masked positions, -1, stay white.
        ax: axes to draw into; a new figure if None.

    Returns:
        The figure and the axes.

    Raises:
        ValueError: if the shape is another one.
        TypeError: if the indices are not integers.

    Example:
        >>> figure, axes = plot_tokens(torch.arange(32).view(2, 4, 4))
        >>> axes.get_images()[0].get_array().shape
        (4, 9, 3)
    """
    if indices.is_floating_point():
        raise TypeError(f"plot_tokens draws integer indices, but got {indices.dtype}. Convert them with .long().")
    if indices.ndim not in (2, 3) or indices.numel() == 0:
        raise ValueError(
            f"plot_tokens draws token maps (h, w) or (B, h, w), but got shape {tuple(indices.shape)}. "
            f"Of several stages, draw each by itself."
        )
    maps = indices.detach().cpu().long().view(-1, *indices.shape[-2:])
    # Neighboring indices mean nothing: far apart in color, by multiples of irrational numbers.
    ratios = torch.tensor([math.sqrt(2), math.sqrt(3), math.sqrt(5)], dtype=torch.float64)
    colors = 0.1 + 0.8 * ((maps[..., None] + 1) * ratios).frac()
    colors = torch.where(maps[..., None] >= 0, colors, 1.0)
    return _show(_tile(colors, columns=len(maps)), ax)


def plot_reconstructions(
    images: Tensor, reconstructions: Tensor, *, columns: int = 8, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Draws images in rows, each row over the row of its reconstructions.

    Args:
        images: ``(B, C, H, W)`` in ``[-1, 1]``, with ``C`` 1 or 3. Values outside are clamped.
        reconstructions: in the same shape.
        columns: images per row.
        ax: axes to draw into; a new figure if None.

    Returns:
        The figure and the axes.

    Raises:
        ValueError: if shapes differ or are not those of images, or ``columns`` is not positive.

    Example:
        >>> images = torch.rand(3, 3, 8, 8) * 2 - 1
        >>> figure, axes = plot_reconstructions(images, images.neg())
        >>> axes.get_images()[0].get_array().shape
        (17, 26, 3)
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0 or images.shape != reconstructions.shape:
        raise ValueError(
            f"plot_reconstructions draws images and reconstructions of one shape (B, C, H, W), C being 1 or 3, "
            f"but got {tuple(images.shape)} and {tuple(reconstructions.shape)}."
        )
    if columns < 1:
        raise ValueError(f"plot_reconstructions needs at least one column, but got columns={columns}.")
    columns = min(columns, len(images))
    pair = [((x.detach().cpu().float().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1) for x in (images, reconstructions)]
    pair = [x.expand(*x.shape[:3], 3) for x in pair]
    rows = [part for parts in zip(*(torch.split(x, columns) for x in pair), strict=True) for part in parts]
    rows = [torch.cat([row, torch.ones(columns - len(row), *row.shape[1:])]) for row in rows]
    return _show(_tile(torch.cat(rows), columns=columns), ax)


def _tile(pictures: Tensor, *, columns: int) -> Tensor:
    """One picture of pictures ``(B, H, W, 3)`` in rows of ``columns``, with white lines of a pixel between them."""
    padded = torch.nn.functional.pad(pictures, (0, 0, 0, 1, 0, 1), value=1.0)
    rows = [torch.cat(list(row), dim=1) for row in torch.split(padded, columns)]
    return torch.cat(rows)[:-1, :-1]


def _show(picture: Tensor, ax: Axes | None) -> tuple[Figure, Axes]:
    height, width = picture.shape[:2]
    figure, ax = axes_or_new(ax, figsize=(8, max(1.0, min(12.0, 8 * height / width))))
    ax.imshow(picture.numpy(), interpolation="nearest")
    ax.set_axis_off()
    return figure, ax
