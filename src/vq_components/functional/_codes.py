"""Nearest-entry search, and how evenly a codebook is used."""

import torch
from torch import Tensor

from .._operators import operator
from ._search import is_exporting, plain_search, search


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the codebook entry nearest to each vector, by Euclidean distance.

    ``argmin_k |z - e_k|^2``, computed as ``argmax_k (z . e_k - |e_k|^2 / 2)``: ``|z|^2`` is the same for all entries,
    and adding it would cost the precision that tells close entries apart. For the same reason both are moved by the
    mean entry where that is far off, more than four times the entries' spread. The scores are made in tiles, so that no
    ``N x K`` matrix ever exists. Autocast and reduced-precision matrix products do not apply inside. A program made by
    ``torch.export`` has plain operations instead, over 4096 entries at a time, in the precision of where it runs.

    Args:
        z: vectors to look up, ``(N, D)``. Half types are computed in float32, float64 stays float64.
        codebook: the entries ``e``, ``(K, D)``, with ``K >= 1``.

    Returns:
        ``(N,)`` ``int64`` indices in ``[0, K)``. Of equally near entries the first one is taken. It has no gradient.

    Raises:
        ValueError: if the shapes are not ``(N, D)`` and ``(K, D)``, or if ``K`` is 0.
        TypeError: if one of the two is not a floating point tensor.

    Example:
        >>> nearest_code(torch.tensor([[0.1, 0.0], [0.9, 0.8]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        tensor([0, 1])
    """
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1] or codebook.shape[0] == 0:
        raise ValueError(
            f"nearest_code compares vectors (N, D) with a codebook (K, D) of at least one entry, "
            f"but got shapes {tuple(z.shape)} and {tuple(codebook.shape)}. Flatten z to vectors (N, D)."
        )
    if not (z.is_floating_point() and codebook.is_floating_point()):
        raise TypeError(
            f"nearest_code compares floating point tensors, but got {z.dtype} and {codebook.dtype}. "
            f"Convert both with .float()."
        )
    dtype = torch.promote_types(torch.promote_types(z.dtype, codebook.dtype), torch.float32)
    z, codebook = z.detach().to(dtype), codebook.detach().to(dtype)
    indices: Tensor = plain_search(z, codebook) if is_exporting() else _search_operator(z, codebook)
    return indices


def _fake_search(z: Tensor, codebook: Tensor) -> Tensor:
    return z.new_empty(z.shape[0], dtype=torch.int64)


# torch.compile sees one node instead of an unrolled loop over tiles.
_search_operator = operator("nearest_code(Tensor z, Tensor codebook) -> Tensor", fake=_fake_search)(search)


def count_codes(indices: Tensor, codebook_size: int) -> Tensor:
    """How often each entry occurs, ``(K,)`` ``int64``, without reading a value; negative indices do not count."""
    flat = indices.flatten().long()
    counts = torch.zeros(codebook_size, dtype=torch.int64, device=flat.device)
    return counts.scatter_add_(0, flat.clamp(min=0), (flat >= 0).long())


def perplexity_of_counts(counts: Tensor) -> Tensor:
    """Exponential of the entropy of the frequencies ``counts``, a float32 scalar; 1 where nothing was counted."""
    share = counts / counts.sum().clamp(min=1)
    entropy: Tensor = torch.special.entr(share.float()).sum()
    return entropy.exp()


def usage_of_counts(counts: Tensor) -> Tensor:
    """Share of entries with a positive count, a float32 scalar."""
    return (counts > 0).float().mean()


def perplexity(indices: Tensor, codebook_size: int) -> Tensor:
    """How many codebook entries are in use, as the exponential of the entropy of their frequencies.

    ``exp(-sum_k p_k log p_k)``, where ``p_k`` is the share of entry ``k`` among ``indices``: ``codebook_size`` if all
    are used equally often, 1 if a single one is used.

    Args:
        indices: integers of any shape in ``[0, codebook_size)``; -1 marks a masked position and is ignored.
        codebook_size: number of entries ``K``, used or not.

    Returns:
        A float32 scalar in ``[1, K]``; 1 if there is no index. It has no gradient.

    Raises:
        ValueError: if an index is outside ``[-1, codebook_size)``.
        TypeError: if ``indices`` are not integers.

    Note:
        This is the perplexity *of these indices*: fewer indices than entries cannot reach ``codebook_size``.

    Example:
        >>> perplexity(torch.tensor([0, 0, 1, 1]), codebook_size=8)
        tensor(2.)
    """
    check_indices(indices, codebook_size, name="perplexity")
    return perplexity_of_counts(count_codes(indices, codebook_size))


def codebook_usage(indices: Tensor, codebook_size: int) -> Tensor:
    """Share of the codebook's entries that occur among ``indices``.

    Args:
        indices: integers of any shape in ``[0, codebook_size)``; -1 marks a masked position and is ignored.
        codebook_size: number of entries ``K``, used or not.

    Returns:
        A float32 scalar in ``[0, 1]``; 0 if there is no index. It has no gradient.

    Raises:
        ValueError: if an index is outside ``[-1, codebook_size)``.
        TypeError: if ``indices`` are not integers.

    Example:
        >>> codebook_usage(torch.tensor([[0, 3], [3, -1]]), codebook_size=8)
        tensor(0.2500)
    """
    check_indices(indices, codebook_size, name="codebook_usage")
    return usage_of_counts(count_codes(indices, codebook_size))


def check_indices(indices: Tensor, codebook_size: int, *, name: str) -> None:
    """Raises unless ``indices`` are integers in ``[-1, codebook_size)``. Values are not read while compiling."""
    if not isinstance(indices, Tensor):
        raise TypeError(
            f"{name} takes a tensor of integer indices, but got {type(indices).__name__}. "
            f"Of what a quantizer returns, pass the field indices."
        )
    if indices.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"{name} takes integer indices, but got {indices.dtype}. Convert them with .long().")
    if torch.compiler.is_compiling() or indices.numel() == 0:
        return
    low, high = (int(bound) for bound in indices.aminmax())
    if low < -1 or high >= codebook_size:
        raise ValueError(
            f"{name} takes indices in [0, {codebook_size}), or -1 for masked positions, "
            f"but got values from {low} to {high}. Were they made with a larger codebook?"
        )
