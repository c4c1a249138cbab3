"""Pictures of a codebook."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ._figure import axes_or_new


def plot_usage(counts: Tensor, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draws how often each entry of a codebook was chosen, the most frequent one first.

    A flat curve is an evenly used codebook; where it ends, dead entries begin.

    Args:
        counts: how often, ``(K,)``, as in ``CodebookHealth.counts`` or from ``indices.bincount(minlength=K)``.
        ax: axes to draw into; a new figure if None.

    Returns:
        The figure and the axes.

    Raises:
        ValueError: if the shape is not ``(K,)``.

    Example:
        >>> figure, axes = plot_usage(torch.tensor([5, 0, 2, 1]))
        >>> axes.get_title()
        '3 of 4 entries in use'
    """
    if counts.ndim != 1 or len(counts) == 0:
        raise ValueError(
            f"plot_usage draws the counts of one codebook, of shape (K,), but got {tuple(counts.shape)}. "
            f"Of several stages, draw each by itself."
        )
    figure, ax = axes_or_new(ax)
    ordered = counts.detach().cpu().sort(descending=True).values
    ax.stairs(ordered.numpy(), fill=True)  # one artist: bars would be thousands
    ax.set_yscale("symlog", linthresh=1)
    ax.set(
        xlabel="entries, by rank",
        ylabel="vectors",
        title=f"{int((ordered > 0).sum())} of {len(ordered)} entries in use",
    )
    return figure, ax


def plot_codebook(
    codebook: Tensor, latents: Tensor | None = None, *, counts: Tensor | None = None, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Draws the entries, over the latents if given, in the plane in which they spread most.

    The plane is that of the first two principal components of the latents, or of the entries without latents.

    Args:
        codebook: the entries, ``(K, D)``.
        latents: vectors ``(N, D)``.
        counts: how often each entry was chosen, ``(K,)``; dead ones are drawn as crosses.
        ax: axes to draw into; a new figure if None.

    Returns:
        The figure and the axes.

    Raises:
        ValueError: if shapes do not fit, or a value is not finite.

    Example:
        >>> figure, axes = plot_codebook(torch.randn(32, 8), torch.randn(500, 8))
        >>> axes.get_legend_handles_labels()[1]
        ['latents', 'entries']
    """
    own = codebook if latents is None else latents
    _check_vectors(codebook, own, counts)
    codebook, own = codebook.detach().cpu().float(), own.detach().cpu().float()
    figure, ax = axes_or_new(ax)
    plane, mean = _principal_plane(own), own.mean(dim=0)
    if latents is not None:
        x, y = ((own - mean) @ plane).T.numpy()
        ax.scatter(x, y, s=4, color="0.75", label="latents", rasterized=True)
    points = (codebook - mean) @ plane
    used = torch.ones(len(codebook), dtype=torch.bool) if counts is None else counts.detach().cpu() > 0
    x, y = points[used].T.numpy()
    ax.scatter(x, y, s=12, color="tab:blue", label="entries")
    if not used.all():
        x, y = points[~used].T.numpy()
        ax.scatter(x, y, s=16, color="tab:red", marker="x", label="dead entries")
    ax.set(xlabel="first principal component", ylabel="second", aspect="equal", adjustable="datalim")
    ax.legend()
    return figure, ax


def _check_vectors(codebook: Tensor, own: Tensor, counts: Tensor | None) -> None:
    if codebook.ndim != 2 or own.ndim != 2 or own.shape[1] != codebook.shape[1] or 0 in (len(own), len(codebook)):
        raise ValueError(
            f"plot_codebook draws entries (K, D) and latents (N, D), but got shapes {tuple(codebook.shape)} and "
            f"{tuple(own.shape)}. Flatten latents to vectors."
        )
    if counts is not None and counts.shape != codebook.shape[:1]:
        raise ValueError(
            f"plot_codebook takes one count for each of {len(codebook)} entries, but got shape {tuple(counts.shape)}."
        )
    if not (codebook.isfinite().all() and own.isfinite().all()):
        raise ValueError("plot_codebook draws finite vectors, but got NaN or infinite values. Leave them out.")


def _principal_plane(vectors: Tensor) -> Tensor:
    """The directions ``(D, 2)`` in which vectors ``(N, D)`` spread most; zero where there is no second one."""
    centered = (vectors - vectors.mean(dim=0)).double()
    directions = torch.linalg.eigh(centered.T @ centered).eigenvectors.flip(1)[:, :2]  # the largest eigenvalues last
    return torch.nn.functional.pad(directions, (0, 2 - directions.shape[1])).float()
