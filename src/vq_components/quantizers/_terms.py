"""Arithmetic and checks that several quantizers share."""

import math
from typing import Any

import torch
from torch import Tensor

from ..functional._codes import count_codes, perplexity_of_counts, usage_of_counts


def check_entries(entries: Tensor, codebook: Tensor) -> None:
    """Raises unless ``entries`` can replace ``codebook``."""
    if not isinstance(entries, Tensor):
        raise TypeError(
            f"set_codebook_ takes a tensor of entries, but got {type(entries).__name__}. "
            f"Convert them with torch.as_tensor(...)."
        )
    if entries.shape != codebook.shape:
        raise ValueError(
            f"set_codebook_ takes entries of shape {tuple(codebook.shape)}, but got {tuple(entries.shape)}."
        )
    if not bool(entries.isfinite().all()):
        raise ValueError("set_codebook_ takes finite entries, but got NaN or infinite values.")


def seen_vectors(z: Tensor, live: Tensor) -> Tensor:
    """Which vectors ``(N, D)`` get an index of their own: the live ones that are finite."""
    z = z.detach()
    return live & z.amax(dim=1).isfinite() & z.amin(dim=1).isfinite()


def measurable_vectors(z: Tensor, live: Tensor) -> Tensor:
    """Which vectors ``(N, D)`` may enter a codebook or its statistics: those whose squared distances are finite too.

    These are at most ``4 D max^2``, from an entry as far away.
    """
    z = z.detach()
    limit = 0.5 * math.sqrt(torch.finfo(z.dtype).max / max(z.shape[1], 1))
    return live & (z.amax(dim=1) < limit) & (z.amin(dim=1) > -limit)


def finite(z: Tensor) -> Tensor:
    """``z`` with zeros for what is not finite, so that no arithmetic on vectors that are not seen spreads it."""
    return z.nan_to_num(0.0, 0.0, 0.0)


def usage_terms(indices: Tensor, codebook_size: int) -> dict[str, Tensor]:
    """The two terms of how indices ``(N,)`` use the codebook; -1 does not count."""
    counts = count_codes(indices, codebook_size)
    return {"perplexity": perplexity_of_counts(counts), "usage": usage_of_counts(counts)}


def mean_square(a: Tensor, b: Tensor, live: Tensor, distances: Tensor | None = None) -> Tensor:
    """Mean of ``(a - b)^2`` over the vectors ``(N, D)`` that are live; 0, not NaN, where there is none.

    NaN, and a gradient that is not finite, if a live vector is infinite or NaN: the user, or a gradient scaler, must
    see it. Vectors that are not live have no gradient, whatever they are. ``distances`` ``(N,)``, the lengths of
    ``a - b``, save the work of computing them where they are known.
    """
    if distances is None:
        distances = torch.linalg.vector_norm(a.detach() - b.detach(), dim=1)
    rows: Tensor = _SquaredDistance.apply(a, b, distances)
    square = torch.where(live, rows + 0 * rows, 0)  # 0 * inf is NaN
    return square.sum() / (live.sum() * math.prod(a.shape[1:])).clamp(min=1)


class _SquaredDistance(torch.autograd.Function):
    """``|a - b|^2`` of vectors ``(N, D)`` at known distances: with few tensors of that size, which take the time."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        # The distances; where no gradient is needed, the compiler of torch 2.5 passes a context before the inputs.
        result: Tensor = inputs[-1].square()
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b = ctx.saved_tensors
        slope = (2 * grad)[:, None]
        flat = slope == 0  # also where 0 * inf is NaN
        return (
            (a - b).mul_(slope).masked_fill_(flat, 0) if ctx.needs_input_grad[0] else None,
            (b - a).mul_(slope).masked_fill_(flat, 0) if ctx.needs_input_grad[1] else None,
            None,
        )
