"""Arithmetic and checks that several quantizers share."""

import math

import torch
from torch import Tensor

from ..functional._codes import count_codes, perplexity_of_counts, usage_of_counts


def check_entries(entries: Tensor, codebook: Tensor) -> None:
    """Raises unless ``entries`` can replace ``codebook``."""
    if entries.shape != codebook.shape:
        raise ValueError(
            f"set_codebook_ takes entries of shape {tuple(codebook.shape)}, but got {tuple(entries.shape)}."
        )
    if not bool(entries.isfinite().all()):
        raise ValueError("set_codebook_ takes finite entries, but got NaN or infinite values.")


def seen_vectors(z: Tensor, live: Tensor) -> Tensor:
    """Which vectors ``(N, D)`` may enter a codebook or its statistics: the live ones that are finite."""
    return live & z.isfinite().all(dim=1)


def usage_terms(indices: Tensor, codebook_size: int) -> dict[str, Tensor]:
    """The two terms of how indices ``(N,)`` use the codebook; -1 does not count."""
    counts = count_codes(indices, codebook_size)
    return {"perplexity": perplexity_of_counts(counts), "usage": usage_of_counts(counts)}


def mean_square(a: Tensor, b: Tensor, live: Tensor) -> Tensor:
    """Mean of ``(a - b)^2`` over the vectors ``(N, D)`` that are live; 0, not NaN, where there is none."""
    square = torch.where(live[:, None], (a - b).square(), 0)
    return square.sum() / (live.sum() * math.prod(a.shape[1:])).clamp(min=1)
