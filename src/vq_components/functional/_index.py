"""Index backpropagation: every entry of a codebook learns from every vector."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._operators import operator
from ._search import exact_products, is_exporting, largest_product, tile_size


def index_backprop(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The entry with the largest inner product, with the gradient of a softmax over all entries.

    With ``p_nk = softmax_k(z_n . e_k)`` and the one-hot vector ``o_n`` of ``argmax_k p_nk``, the value is
    ``sum_k o_nk e_k`` and the gradient that of ``sum_k (o_nk + p_nk - sg[p_nk]) e_k``: the index backpropagation of
    Shi et al., "Scalable Image Tokenization with Index Backpropagation Quantization" (2024). Forward and backward go
    through ``p`` in tiles, the backward by making it again, so that no ``N x K`` matrix ever exists; they take a copy
    of the codebook and a gradient of its size. ``torch.export`` without gradients finds plain operations instead, over
    4096 entries at a time.

    Args:
        z: vectors, ``(N, D)``.
        codebook: the entries ``e``, ``(K, D)``, with ``K >= 1``, of the same dtype, float32 or float64.

    Returns:
        The entries, ``(N, D)``, bit for bit, and their indices, ``(N,)`` ``int64``; of equal products the first.

    Raises:
        ValueError: if the shapes are not ``(N, D)`` and ``(K, D)``, or if ``K`` is 0.
        TypeError: if the two are not both float32 or both float64.

    Example:
        >>> codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], requires_grad=True)
        >>> quantized, indices = index_backprop(torch.tensor([[2.0, 0.5]]), codebook)
        >>> quantized.sum().backward()
        >>> indices, codebook.grad.abs().sum(dim=1) > 0
        (tensor([0]), tensor([True, True, True]))
    """
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1] or codebook.shape[0] == 0:
        raise ValueError(
            f"index_backprop compares vectors (N, D) with a codebook (K, D) of at least one entry, "
            f"but got shapes {tuple(z.shape)} and {tuple(codebook.shape)}. Flatten z to vectors (N, D)."
        )
    if z.dtype != codebook.dtype or z.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"index_backprop takes float32 or float64 tensors of one dtype, but got {z.dtype} and {codebook.dtype}. "
            f"Convert both with .float()."
        )
    if is_exporting() and not torch.is_grad_enabled():
        indices = largest_product(z, codebook)
        return F.embedding(indices, codebook), indices
    # A copy: the backward needs the codebook as it was, and an optimizer may have moved it by then.
    quantized, indices, _, _ = _forward_operator(z, codebook.clone())
    return quantized, indices


def _tiles(vectors: Tensor, codebook: Tensor) -> Iterator[tuple[slice, list[slice]]]:
    """Slices of rows, each with slices of entries, that make tiles of scores."""
    tile = tile_size(vectors.device.type)
    columns = min(len(codebook), max(tile // 64, 1))
    rows = max(tile // columns, 1)
    parts = [slice(left, left + columns) for left in range(0, len(codebook), columns)]
    for top in range(0, len(vectors), rows):
        yield slice(top, top + rows), parts


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor] = _backward_operator(grad.contiguous(), *ctx.saved_tensors)
    return gradients


def _fake_forward(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    number = z.shape[0]  # len() would be a constant to the compiler
    return torch.empty_like(z), z.new_empty(number, dtype=torch.int64), z.new_empty(number), torch.empty_like(z)


@operator(
    "index_backprop(Tensor z, Tensor codebook) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake_forward,
    setup_context=_setup_context,
    backward=_backward,
)
def _forward_operator(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Entries, their indices, and of the softmax the log of its denominator ``(N,)`` and its mean ``(N, D)``."""
    indices = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    log_sum, mean = z.new_zeros(len(z)), torch.zeros_like(z)
    with exact_products(z.device.type):
        for rows, parts in _tiles(z, codebook):
            best, index = z.new_full((len(z[rows]),), -torch.inf), indices[rows]
            total, sums = torch.zeros_like(best), mean[rows]
            for part in parts:
                scores = z[rows] @ codebook[part].T
                score, column = scores.max(dim=1)
                index = torch.where(score > best, column + part.start, index)
                peak = torch.maximum(score, best)
                shrink = (best - peak).exp()  # the sums so far are in units of exp(best)
                weights = scores.sub_(peak[:, None]).exp_()
                total = total * shrink + weights.sum(dim=1)
                sums = sums * shrink[:, None] + weights @ codebook[part]
                best = peak
            indices[rows], log_sum[rows], mean[rows] = index, best + total.log(), sums / total[:, None]
    return codebook[indices], indices, log_sum, mean


def _fake_backward(grad: Tensor, z: Tensor, codebook: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(z), torch.empty_like(codebook)


@operator(
    "index_backprop_backward(Tensor grad, Tensor z, Tensor codebook, Tensor indices, Tensor log_sum, Tensor mean) "
    "-> (Tensor, Tensor)",
    fake=_fake_backward,
)
def _backward_operator(
    grad: Tensor, z: Tensor, codebook: Tensor, indices: Tensor, log_sum: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of ``z`` and of the codebook.

    With ``a_nk = grad_n . e_k`` the softmax' gradient for the scores is ``p_nk (a_nk - sum_j p_nj a_nj)``, where
    the sum is ``grad_n . mean_n``.
    """
    grad_z = torch.zeros_like(z)
    grad_codebook = torch.zeros_like(codebook).index_add_(0, indices, grad)
    center = (grad * mean).sum(dim=1, keepdim=True)
    with exact_products(z.device.type):
        for rows, parts in _tiles(z, codebook):
            for part in parts:
                entries = codebook[part]
                weights = (z[rows] @ entries.T).sub_(log_sum[rows, None]).exp_()
                weights.mul_((grad[rows] @ entries.T).sub_(center[rows]))
                grad_z[rows].addmm_(weights, entries)
                grad_codebook[part].addmm_(weights.T, z[rows])
    return grad_z, grad_codebook
