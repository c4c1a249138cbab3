"""Terms that spread a codebook: entropies of soft assignments, and orthogonality of the entries."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ._search import tile_size


class CodeEntropies(NamedTuple):
    """Two entropies, in nats, of soft assignments ``q_n(k)`` of ``N`` vectors to ``K`` entries."""

    sample: Tensor
    """``mean_n H(q_n)``, in ``[0, log K]``: minimize it to make each assignment certain."""
    batch: Tensor
    """``H(mean_n q_n)``, in ``[0, log K]``, at least ``sample``: maximize it to use all entries alike."""


def code_entropies(z: Tensor, codebook: Tensor, *, temperature: float, mask: Tensor | None = None) -> CodeEntropies:
    """Entropies of the soft assignments of vectors to codebook entries.

    ``q_n(k) = softmax_k(-|z_n - e_k|^2 / temperature)``. The entropy penalty of Yu et al., "Language Model Beats
    Diffusion -- Tokenizer is Key to Visual Generation" (2023), is ``sample - batch``; ``batch`` alone is a diversity
    term. Computed in tiles that are made again in the backward, so that no ``N x K`` matrix ever exists; for the
    entries ``{-1, 1}^b`` :func:`bit_entropies` is far cheaper.

    Args:
        z: vectors, ``(N, D)``, finite where they count.
        codebook: the entries ``e``, ``(K, D)``. Both receive a gradient.
        temperature: softness of the assignments, positive, in units of squared distance.
        mask: bool, ``(N,)``, True where a vector counts.

    Returns:
        A :class:`CodeEntropies` of two scalars, at least float32; both 0 where no vector counts.

    Raises:
        ValueError: if the shapes do not fit or ``temperature`` is not positive.

    Example:
        >>> entropies = code_entropies(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]), temperature=0.01)
        >>> [round(float(entropy), 4) for entropy in entropies]  # certain of each, and both used alike: log 2
        [0.0, 0.6931]
    """
    _check_assignments(z, temperature, mask, name="code_entropies")
    if codebook.ndim != 2 or codebook.shape[1] != z.shape[1] or codebook.shape[0] == 0:
        raise ValueError(
            f"code_entropies compares vectors (N, D) with a codebook (K, D) of at least one entry, "
            f"but got shapes {tuple(z.shape)} and {tuple(codebook.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(z.dtype, codebook.dtype), torch.float32)
    z, codebook, live = z.to(dtype), codebook.to(dtype), _live(z, mask)
    entropy, share = z.new_zeros(()), z.new_zeros(codebook.shape[0])
    rows = max(tile_size(z.device.type) // codebook.shape[0], 16)
    with torch.autocast(z.device.type, enabled=False):
        for part, chosen in zip(torch.split(z, rows), torch.split(live, rows), strict=True):
            more = checkpoint(_sums_of_tile, part, codebook, chosen, temperature, use_reentrant=False)
            entropy, share = entropy + more[0], share + more[1]
    count = live.sum().clamp(min=1)
    return CodeEntropies(entropy / count, _entropy(share / count))


def _sums_of_tile(z: Tensor, codebook: Tensor, live: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sums over the live vectors of the entropies, ``()``, and of the assignments, ``(K,)``."""
    # |z|^2 is the same for all entries.
    scores = (2 * torch.where(live[:, None], z, 0) @ codebook.T - codebook.square().sum(dim=1)) / temperature
    log_q = scores.log_softmax(dim=1)
    q = torch.where(live[:, None], log_q.exp(), 0)
    return -(q * log_q).sum(), q.sum(dim=0)


def bit_entropies(z: Tensor, *, temperature: float, mask: Tensor | None = None) -> CodeEntropies:
    """:func:`code_entropies` for the ``2^b`` entries ``{-1, 1}^b``, exact and without an ``N x 2^b`` matrix.

    Given ``z_n``, bits are independent: ``q_n(k) = prod_i sigmoid(+-4 z_ni / temperature)``. Hence ``H(q_n)`` is the
    sum of the bits' entropies, and with ``q_n(k) = a_n(k_1) c_n(k_2)`` for the two halves of the bits, ``mean_n q_n``
    is the matrix product ``A^T C / N`` of an ``N x 2^(b/2)`` pair: for 2^18 entries two matrices of 512 columns.

    Args:
        z: vectors, ``(N, b)``, finite where they count. It receives a gradient.
        temperature: softness of the assignments, positive, in units of squared distance.
        mask: bool, ``(N,)``, True where a vector counts.

    Returns:
        A :class:`CodeEntropies` of two scalars, at least float32; both 0 where no vector counts.

    Raises:
        ValueError: if the shapes do not fit or ``temperature`` is not positive.

    Example:
        >>> entropies = bit_entropies(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), temperature=0.01)
        >>> [round(float(entropy), 4) for entropy in entropies]
        [0.0, 0.6931]
    """
    _check_assignments(z, temperature, mask, name="bit_entropies")
    live = _live(z, mask)
    logits = z.to(torch.promote_types(z.dtype, torch.float32)) * (4 / temperature)
    logits = torch.where(live[:, None], logits, 0)
    positive, negative = logits.sigmoid(), (-logits).sigmoid()
    # log(1 - p) from the logits: p rounds to 1.
    bits = -(positive * F.logsigmoid(logits) + negative * F.logsigmoid(-logits))
    count = live.sum().clamp(min=1)
    sample = torch.where(live[:, None], bits, 0).sum() / count
    half = z.shape[1] // 2
    with torch.autocast(z.device.type, enabled=False):
        first = _joint(negative[:, :half], positive[:, :half])
        second = _joint(negative[:, half:], positive[:, half:])
        share = torch.where(live[:, None], first, 0).T @ second / count
    return CodeEntropies(sample, _entropy(share))


def _joint(negative: Tensor, positive: Tensor) -> Tensor:
    """Probabilities ``(N, 2^b)`` of all combinations of ``b`` independent bits, from theirs, ``(N, b)`` each."""
    joint = negative.new_ones(negative.shape[0], 1)
    for off, on in zip(negative.unbind(dim=1), positive.unbind(dim=1), strict=True):
        joint = torch.cat([joint * off[:, None], joint * on[:, None]], dim=1)
    return joint


def orthogonality_loss(codebook: Tensor) -> Tensor:
    """Mean squared cosine between codebook entries: how far they are from being orthogonal.

    ``|E E^T - I|_F^2 / K^2`` for entries normalized to unit length, the orthogonal regularization of Shin et al.,
    "Exploration into Translation-Equivariant Image Quantization" (2021). Computed from the ``D x D`` matrix ``E^T E``,
    whose norm is that of ``E E^T``.

    Args:
        codebook: the entries, ``(K, D)``. It receives the gradient.

    Returns:
        A scalar, at least float32, in ``[0, 1 - 1 / K]``; 0 if all entries are orthogonal, which takes ``K <= D``.

    Raises:
        ValueError: if the shape is not ``(K, D)`` with at least one entry.

    Example:
        >>> orthogonality_loss(torch.eye(3)), orthogonality_loss(torch.ones(2, 3))
        (tensor(0.), tensor(0.5000))
    """
    if codebook.ndim != 2 or codebook.shape[0] == 0:
        raise ValueError(
            f"orthogonality_loss takes a codebook (K, D) of at least one entry, but got shape {tuple(codebook.shape)}."
        )
    size = codebook.shape[0]
    with torch.autocast(codebook.device.type, enabled=False):
        unit = F.normalize(codebook.to(torch.promote_types(codebook.dtype, torch.float32)), dim=1)
        # The diagonal of E E^T is subtracted as it is, so that orthogonal entries give 0 to rounding.
        difference = (unit.T @ unit).square().sum() - unit.square().sum(dim=1).square().sum()
    return difference / size**2


def _entropy(share: Tensor) -> Tensor:
    """``-sum p log p`` with a finite gradient where a share has underflowed to 0."""
    return -(share * share.clamp(min=torch.finfo(share.dtype).tiny).log()).sum()


def _check_assignments(z: Tensor, temperature: float, mask: Tensor | None, *, name: str) -> None:
    if z.ndim != 2:
        raise ValueError(f"{name} takes vectors (N, D), but got shape {tuple(z.shape)}. Flatten them.")
    if mask is not None and (mask.shape != z.shape[:1] or mask.dtype != torch.bool):
        raise ValueError(
            f"{name} takes a bool mask of shape {tuple(z.shape[:1])}, but got {mask.dtype} of {tuple(mask.shape)}."
        )
    if temperature <= 0:
        raise ValueError(f"{name} needs a positive temperature, but got {temperature}.")


def _live(z: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones(z.shape[0], dtype=torch.bool, device=z.device) if mask is None else mask
