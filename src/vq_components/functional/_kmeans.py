"""Clustering of vectors, to start a codebook by hand."""

import torch
from torch import Tensor

from ._search import search


@torch.no_grad()
def kmeans(
    vectors: Tensor, num_clusters: int, *, iterations: int = 10, generator: torch.Generator | None = None
) -> Tensor:
    """Centers of clusters of vectors, by Lloyd's algorithm.

    Starts from ``num_clusters`` different vectors, drawn at random; then moves each center, ``iterations`` times, to
    the mean of the vectors nearest to it. A center that no vector is nearest to moves to one of the vectors that are
    farthest from their own center, so that none is left unused. Lloyd, "Least squares quantization in PCM" (1982). No
    ``N x K`` matrix is made.

    Args:
        vectors: ``(N, D)``, finite, with ``N >= num_clusters``.
        num_clusters: number of centers ``K``.
        iterations: number of moves; 0 gives the drawn vectors.
        generator: source of the draw, on the CPU; the global one if None. Equal states give equal centers.

    Returns:
        Centers ``(K, D)``, at least float32, for example for ``quantizer.set_codebook_``. They have no gradient.

    Raises:
        ValueError: if the shape is not ``(N, D)``, ``num_clusters`` is not in ``[1, N]``, or a value is not finite.
        TypeError: if ``vectors`` are not floating point.

    Example:
        >>> vectors = torch.tensor([[0.0], [0.2], [5.0], [5.2]])
        >>> centers = kmeans(vectors, 2, generator=torch.Generator().manual_seed(0))
        >>> [round(float(center), 4) for center in centers.sort(dim=0).values]
        [0.1, 5.1]
    """
    if not vectors.is_floating_point():
        raise TypeError(f"kmeans takes floating point vectors, but got {vectors.dtype}. Convert them with .float().")
    if vectors.ndim != 2 or not 1 <= num_clusters <= vectors.shape[0]:
        raise ValueError(
            f"kmeans finds 1 to N clusters of vectors (N, D), "
            f"but got shape {tuple(vectors.shape)} and num_clusters={num_clusters}."
        )
    if not bool(vectors.isfinite().all()):
        raise ValueError("kmeans takes finite vectors, but got NaN or infinite values.")
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    drawn = torch.randperm(vectors.shape[0], generator=generator)[:num_clusters]
    centers = vectors[drawn.to(vectors.device)]
    for _ in range(iterations):
        nearest = search(vectors, centers)
        sums = torch.zeros_like(centers).index_add_(0, nearest, vectors)
        counts = torch.zeros_like(centers[:, 0]).index_add_(0, nearest, torch.ones_like(vectors[:, 0]))
        farthest = (vectors - centers[nearest]).square().sum(dim=1).argsort(descending=True, stable=True)
        empty = counts == 0
        refuge = vectors[farthest[(empty.cumsum(0) - 1).clamp(min=0)]]
        centers = torch.where(empty[:, None], refuge, sums / counts.clamp(min=1)[:, None])
    return centers
