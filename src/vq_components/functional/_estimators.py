"""Gradient estimators: the forward value is the codebook entry, only the gradient differs."""

from typing import Any

import torch
from torch import Tensor


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
    if z.shape != quantized.shape or z.dtype != quantized.dtype:
        raise ValueError(
            f"straight_through needs two tensors of one shape and dtype, but got {tuple(z.shape)} {z.dtype} "
            f"and {tuple(quantized.shape)} {quantized.dtype}. Convert quantized to z's."
        )
    result: Tensor = _StraightThrough.apply(z, quantized)
    return result
