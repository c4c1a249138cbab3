"""Gradients that a loss takes itself: once through each network, at a copy of the reconstructions."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..functional._adversarial import GRADIENT_SEED, balance, gradient_norm, power_of_two, to_full_precision

# What the gradient at the reconstructions sums up to, in absolute values, on its way through the last layer. Products
# with its inputs then stay in float16's range, whatever the number of pixels.
_TOTAL_GRADIENT = 2.0**8


def values_and_gradient(
    function: Callable[[Tensor], tuple[Tensor, ...]], reconstructions: Tensor
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Detached values of ``function`` at ``reconstructions``, and the gradient of the first of them there.

    The function receives a copy in full precision, which no graph leads to: no gradient goes anywhere else. Without a
    graph at ``reconstructions``, or with autograd off, there is no gradient.
    """
    differentiable = torch.is_grad_enabled() and reconstructions.requires_grad
    copy = to_full_precision(reconstructions.detach()).requires_grad_(differentiable)
    values = function(copy)
    gradient = None
    if differentiable:
        seed = torch.full_like(values[0], GRADIENT_SEED)
        gradient = torch.autograd.grad(values[0], copy, grad_outputs=seed)[0] / GRADIENT_SEED
    return tuple(value.detach() for value in values), gradient


def balance_at(
    last_layer: Tensor, reconstructions: Tensor, reconstruction: Tensor, adversarial: Tensor, *, delta: float
) -> Tensor:
    """:func:`adaptive_weight` of two losses whose gradients at ``reconstructions`` are known."""
    norms = []
    for gradient in (reconstruction, adversarial):
        total = gradient.abs().sum().clamp(min=2.0**-100)
        seed = _TOTAL_GRADIENT / power_of_two(total)
        norms.append(gradient_norm(reconstructions, last_layer, gradient, seed=seed, name="reconstructions"))
    return balance(*norms, max_weight=1e4, delta=delta)


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, at: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = at.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        # Grad mode is on in here for create_graph=True only. The gradient is a constant to autograd: any derivative of
        # it would come out as zero.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "The generator's loss can be differentiated once only: its gradient is computed in the forward pass. "
                "Call backward() without create_graph=True."
            )
        (gradient,) = ctx.saved_tensors
        return None, (grad * gradient).to(ctx.dtype), None


def with_gradient(value: Tensor, at: Tensor, gradient: Tensor) -> Tensor:
    """``value``, with ``gradient`` as its gradient at ``at``."""
    result: Tensor = _KnownGradient.apply(value, at, gradient)
    return result


def call_on_copies(module: nn.Module, inputs: Tensor) -> Tensor:
    """``module(inputs)`` in its current mode, on copies of parameters and buffers: nothing that it does is kept.

    Parameters are copied too, because a layer may write to them in its forward pass, as :class:`ActNorm` does.
    """
    module = _unwrap(module)
    tensors = chain(module.named_parameters(), module.named_buffers())
    copies = {name: tensor.detach().clone() for name, tensor in tensors}
    result: Tensor = torch.func.functional_call(module, copies, (inputs,))
    return result


def _unwrap(module: nn.Module) -> nn.Module:
    """What a data-parallel wrapper wraps, compiled or not: its synchronization is for the discriminator's own pass."""
    inner = getattr(module, "_orig_mod", module)
    if isinstance(inner, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return _unwrap(inner.module)
    return module
