"""Gradient estimators: the forward value is the codebook entry, only the gradient differs."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        # z and the entries; where no gradient is needed, the compiler of torch 2.5 passes a context before them.
        result: Tensor = inputs[-1].clone()
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The value of ``quantized`` with the gradient of ``z``: ``dL/dz := dL/dquantized``.

    The straight-through estimator of Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons"
    (2013), as van den Oord et al., "Neural Discrete Representation Learning" (2017), use it to copy gradients from the
    decoder's input ``z_q`` to the encoder's output ``z_e``. The usual ``z + (quantized - z).detach()`` rounds; here the
    result is bit-equal to ``quantized``.

    Args:
        z: the encoder's output, of any shape. It receives the gradient unchanged.
        quantized: the entries that replace it, of the same shape and dtype. It receives no gradient.

    Returns:
        ``quantized`` as a new tensor, bit for bit.

    Raises:
        ValueError: if shapes or dtypes differ.

    Example:
        >>> z = torch.tensor([0.2, 0.9], requires_grad=True)
        >>> out = straight_through(z, z.detach().round())
        >>> (3 * out).sum().backward()
        >>> out.tolist(), z.grad.tolist()
        ([0.0, 1.0], [3.0, 3.0])
    """
    _check_pair(z, quantized, name="straight_through")
    result: Tensor = _StraightThrough.apply(z, quantized)
    return result


class _Rotate(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        result: Tensor = inputs[-1].clone()  # as in _StraightThrough
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        z, quantized = (vectors.detach() for vectors in ctx.saved_tensors)
        return _rotate_back(grad, z, quantized), None


def rotate(z: Tensor, quantized: Tensor) -> Tensor:
    """The value of ``quantized`` with a gradient that is turned and scaled as ``quantized`` is from ``z``.

    ``dL/dz := (|q| / |z|) R^T dL/dq``, where the rotation ``R`` takes the direction of ``z`` to that of the entry ``q``
    and ``|q| / |z|`` and ``R`` count as constants: the rotation trick of Fifty et al., "Restructuring Vector
    Quantization with the Rotation Trick" (2024). The angle between gradient and entry becomes that between gradient
    and ``z``; :func:`straight_through` keeps the gradient itself.

    ``R = I - 2 w w^T + 2 b a^T`` with ``a = z / |z|``, ``b = q / |q|``, ``w = (a + b) / |a + b|``. Where ``z`` or ``q``
    is zero, there is no direction, and the gradient passes unchanged. Half types are computed in float32.

    Args:
        z: the encoder's output, vectors along the last dimension, ``(..., D)``.
        quantized: the entries that replace it, of the same shape and dtype. It receives no gradient.

    Returns:
        ``quantized`` as a new tensor, bit for bit.

    Raises:
        ValueError: if shapes or dtypes differ, or there is no dimension.

    Example:
        >>> z = torch.tensor([[2.0, 0.0]], requires_grad=True)
        >>> out = rotate(z, torch.tensor([[0.0, 1.0]]))
        >>> out.backward(torch.tensor([[0.0, 3.0]]))  # along the entry, hence along z, by half the norm
        >>> out.tolist(), z.grad.round(decimals=3).tolist()
        ([[0.0, 1.0]], [[1.5, 0.0]])
    """
    _check_pair(z, quantized, name="rotate")
    if z.ndim == 0:
        raise ValueError("rotate takes vectors along the last dimension, but got a scalar. Pass shape (..., D).")
    result: Tensor = _Rotate.apply(z, quantized)
    return result


def _rotate_back(grad: Tensor, z: Tensor, quantized: Tensor) -> Tensor:
    """``(|q| / |z|) R^T grad`` of vectors along the last dimension."""
    dtype = torch.promote_types(grad.dtype, torch.float32)
    g, z, quantized = grad.to(dtype), z.to(dtype), quantized.to(dtype)
    length, target = (vectors.norm(dim=-1, keepdim=True) for vectors in (z, quantized))
    has_direction = (length > 0) & (target > 0)
    a = z / torch.where(has_direction, length, 1)
    b = quantized / torch.where(has_direction, target, 1)
    w = F.normalize(a + b, dim=-1)  # zero for opposite vectors: R is then the reflection, which turns a to b too
    turned = g - 2 * (w * g).sum(dim=-1, keepdim=True) * w + 2 * (b * g).sum(dim=-1, keepdim=True) * a
    turned = turned * target / torch.where(has_direction, length, 1)
    return torch.where(has_direction, turned, g).to(grad.dtype)


def _check_pair(z: Tensor, quantized: Tensor, *, name: str) -> None:
    if z.shape != quantized.shape or z.dtype != quantized.dtype:
        raise ValueError(
            f"{name} needs two tensors of one shape and dtype, but got {tuple(z.shape)} {z.dtype} "
            f"and {tuple(quantized.shape)} {quantized.dtype}. Convert quantized to z's."
        )
