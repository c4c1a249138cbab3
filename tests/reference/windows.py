"""Sampling in a sliding window, the plain way: one position after the other, the whole window anew for each."""

import torch


def place(i, whole, size):
    """Start of the window of position ``i`` along a side: ``i`` in its middle, clamped to the grid."""
    start = i - size // 2
    return 0 if start < 0 else whole - size if start > whole - size else start


def sample(logits_at, uniforms, pick_rows, *, window):
    """A grid of tokens ``(B, H, W)`` at ``uniforms`` of that shape.

    ``logits_at(block, top, left, position)`` are the logits ``(B, V)`` of one position of a window, given all its
    tokens ``(B, h, w)`` (0 where there are none yet).
    """
    _, height, width = uniforms.shape
    h, w = min(window[0], height), min(window[1], width)
    tokens = torch.zeros(uniforms.shape, dtype=torch.int64)
    for row in range(height):
        for column in range(width):
            top, left = place(row, height, h), place(column, width, w)
            block = tokens[:, top : top + h, left : left + w]
            logits = logits_at(block, top, left, (row - top) * w + column - left)
            tokens[:, row, column] = pick_rows(logits, uniforms[:, row, column])
    return tokens


def crop(values, top, left, *, size, finer=1, coarser=1):
    """The part of a grid of tokens under a window, where ``finer`` cells lie along one token, or one along ``coarser``.

    A coarser window starts at the cell that the image's window starts in.
    """
    (h, w), rows, columns = size, range(values.shape[1]), range(values.shape[2])
    if finer > 1:
        rows = [row for row in rows if top <= row // finer < top + h]
        columns = [column for column in columns if left <= column // finer < left + w]
    else:
        rows = list(rows)[top // coarser :][: h // coarser]
        columns = list(columns)[left // coarser :][: w // coarser]
    return values[:, rows][:, :, columns]


def coordinates(top, left, *, size, grid, batch):
    """Where a window lies between the first (0) and the last (1) place along each side."""
    free = [whole - side for whole, side in zip(grid, size, strict=True)]
    values = [start / most if most > 0 else 0.0 for start, most in zip((top, left), free, strict=True)]
    return torch.tensor([values] * batch)
