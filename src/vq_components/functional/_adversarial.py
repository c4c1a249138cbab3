"""Losses of a discriminator and its generator, and the weight that balances the generator's two sides."""

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable would import the compiler at once

# Internal gradients start from this instead of 1 and are divided by it afterwards, in float32: where the graph is
# float16, the gradient of a mean over an image would otherwise round to zero. A power of two changes no digit.
GRADIENT_SEED = 2.0**12

_Function = TypeVar("_Function", bound=Callable[..., Any])
# For what calls autograd itself, which torch.compile cannot follow: it runs as it is, and the graph breaks around it.
not_compiled = cast(Callable[[_Function], _Function], _disable_dynamo)


def to_full_precision(tensor: Tensor) -> Tensor:
    """Half types as float32; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def mean(tensor: Tensor) -> Tensor:
    """Mean over all entries, accumulated in float32 for half types; 0 for an empty tensor."""
    return to_full_precision(tensor).sum() / max(tensor.numel(), 1)


def hinge_discriminator_loss(*, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Discriminator's hinge loss: real logits are pushed above 1, fake ones below -1.

    ``(mean(max(0, 1 - D(x))) + mean(max(0, 1 + D(x̂)))) / 2``: the hinge loss of Lim & Ye (2017, "Geometric GAN"),
    halved as in VQ-GAN, so that a discriminator that sees no difference (all logits 0) scores 1.

    Args:
        logits_real: logits ``D(x)`` of images, any shape.
        logits_fake: logits ``D(x̂)`` of reconstructions, any shape.

    Returns:
        A scalar, float32 for half types: each mean is over all logits.

    Example:
        >>> hinge_discriminator_loss(logits_real=torch.tensor([0.5, 2.0]), logits_fake=torch.tensor([0.0, -3.0]))
        tensor(0.3750)
    """
    real, fake = to_full_precision(logits_real), to_full_precision(logits_fake)
    return 0.5 * (mean(F.relu(1 - real)) + mean(F.relu(1 + fake)))


def hinge_generator_loss(*, logits_fake: Tensor) -> Tensor:
    """Generator's side of the hinge loss: ``-mean(D(x̂))``, Lim & Ye (2017).

    Args:
        logits_fake: logits ``D(x̂)`` of reconstructions, any shape.

    Returns:
        A scalar, float32 for half types. It may be negative.

    Example:
        >>> hinge_generator_loss(logits_fake=torch.tensor([0.5, 1.5]))
        tensor(-1.)
    """
    return -mean(logits_fake)


def vanilla_discriminator_loss(*, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Discriminator's cross-entropy: real against fake, with logits.

    ``(mean(softplus(-D(x))) + mean(softplus(D(x̂)))) / 2``, where ``sigmoid(D)`` is the ``D`` of Goodfellow et al.
    (2014), who maximize ``log D(x) + log(1 - D(G(z)))``. It is ``log 2`` if all logits are 0.

    Args:
        logits_real: logits ``D(x)`` of images, any shape.
        logits_fake: logits ``D(x̂)`` of reconstructions, any shape.

    Returns:
        A scalar, float32 for half types: each mean is over all logits.

    Example:
        >>> vanilla_discriminator_loss(logits_real=torch.zeros(2), logits_fake=torch.zeros(2))
        tensor(0.6931)
    """
    real, fake = to_full_precision(logits_real), to_full_precision(logits_fake)
    return 0.5 * (mean(F.softplus(-real)) + mean(F.softplus(fake)))


def vanilla_generator_loss(*, logits_fake: Tensor) -> Tensor:
    """Generator's side of VQ-GAN's ``"vanilla"`` loss: ``-mean(D(x̂))``.

    VQ-GAN (Esser et al. 2021) pairs the cross-entropy of its discriminator with a generator loss that is linear in
    the logits. Goodfellow et al. (2014) do not: theirs is :func:`non_saturating_generator_loss`.

    Args:
        logits_fake: logits ``D(x̂)`` of reconstructions, any shape.

    Returns:
        A scalar, float32 for half types. It may be negative.

    Example:
        >>> vanilla_generator_loss(logits_fake=torch.tensor([0.5, 1.5]))
        tensor(-1.)
    """
    return -mean(logits_fake)


def non_saturating_discriminator_loss(*, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Discriminator's cross-entropy, the same as :func:`vanilla_discriminator_loss`.

    Args:
        logits_real: logits ``D(x)`` of images, any shape.
        logits_fake: logits ``D(x̂)`` of reconstructions, any shape.

    Returns:
        A scalar, float32 for half types: each mean is over all logits.

    Example:
        >>> non_saturating_discriminator_loss(logits_real=torch.zeros(2), logits_fake=torch.zeros(2))
        tensor(0.6931)
    """
    return vanilla_discriminator_loss(logits_real=logits_real, logits_fake=logits_fake)


def non_saturating_generator_loss(*, logits_fake: Tensor) -> Tensor:
    """Generator's non-saturating loss: ``mean(softplus(-D(x̂)))``.

    ``-log D(G(z))`` of Goodfellow et al. (2014, section 3), whose ``D`` is ``sigmoid`` of the logits here: the
    gradient is largest where the discriminator is sure that a reconstruction is fake, and fades where it is fooled.

    Args:
        logits_fake: logits ``D(x̂)`` of reconstructions, any shape.

    Returns:
        A scalar that is not negative, float32 for half types.

    Example:
        >>> non_saturating_generator_loss(logits_fake=torch.zeros(2))
        tensor(0.6931)
    """
    return mean(F.softplus(-to_full_precision(logits_fake)))


@not_compiled
def adaptive_weight(
    reconstruction_loss: Tensor,
    generator_loss: Tensor,
    last_layer: Tensor,
    *,
    max_weight: float = 1e4,
    delta: float = 1e-6,
) -> Tensor:
    """Weight that gives the adversarial loss as much pull on the last layer as the reconstruction loss has.

    ``|∇ L_rec| / (|∇ L_GAN| + delta)``: lambda of Esser et al. (2021, "Taming Transformers for High-Resolution Image
    Synthesis"), where ``∇`` is the gradient at ``L``, the decoder's last layer, and ``delta`` their constant for
    stability. Norms are Frobenius norms, in float32 for half types; the result is clamped to ``[0, max_weight]``.
    The gradients start from a power of two that is divided out again, so that float16 graphs do not underflow.

    Args:
        reconstruction_loss: one number that depends on ``last_layer``.
        generator_loss: one number that depends on ``last_layer``.
        last_layer: the weight of the decoder's last layer, as the forward pass used it.
        max_weight: the largest weight.
        delta: keeps the weight bounded where the adversarial gradient vanishes. The original code has 1e-4.

    Returns:
        A scalar without gradient. It is 0 where both gradients are zero, and where one of them is not finite.
        Both graphs are kept, so ``backward()`` can follow.

    Raises:
        TypeError: if ``last_layer`` is not a tensor.
        ValueError: if a loss is not one number, or its gradient does not reach ``last_layer``.
        RuntimeError: if the graph passes through ``DistributedDataParallel(static_graph=True)`` before its first
            backward pass, which would then never synchronize gradients.

    Example:
        >>> weight = torch.ones(3, requires_grad=True)
        >>> adaptive_weight((4 * weight).sum(), (2 * weight).sum(), weight, delta=0.0)
        tensor(2.)
    """
    losses = {"reconstruction_loss": reconstruction_loss, "generator_loss": generator_loss}
    for name, loss in losses.items():
        if loss.numel() != 1:
            raise ValueError(f"{name} must be one number, but got shape {tuple(loss.shape)}. Reduce it first.")
        check_last_layer(last_layer, loss, name=name)
    norms = []
    for name, loss in losses.items():
        # A loss that is a sum over many entries has large gradients: its seed is smaller, or float16 would overflow.
        seed = GRADIENT_SEED / power_of_two(to_full_precision(loss.detach()).abs().clamp(min=1.0)).reshape(())
        norms.append(gradient_norm(loss, last_layer, torch.ones_like(loss), seed=seed, name=name))
    return balance(*norms, max_weight=max_weight, delta=delta)


def balance(reconstruction_norm: Tensor, generator_norm: Tensor, *, max_weight: float, delta: float) -> Tensor:
    """Ratio of two gradient norms in ``[0, max_weight]``; 0 for 0 / 0 and where a norm is not finite."""
    ratio = (reconstruction_norm / (generator_norm + delta)).nan_to_num(nan=0.0).clamp(0.0, max_weight)
    return torch.where(reconstruction_norm.isfinite() & generator_norm.isfinite(), ratio, 0.0)


def power_of_two(tensor: Tensor) -> Tensor:
    """The smallest power of two that is not below each entry."""
    return tensor.log2().ceil().exp2()


def check_last_layer(last_layer: Tensor | None, outputs: Tensor, *, name: str) -> Tensor:
    """``last_layer``, unless flags tell that ``outputs``, called ``name`` in the message, have no gradient there."""
    if not isinstance(last_layer, Tensor):
        raise TypeError(
            "last_layer must be the weight of the decoder's last layer, a tensor, "
            f"but got {type(last_layer).__name__}. Pass for example decoder.conv_out.weight."
        )
    if not last_layer.requires_grad:
        raise _unreachable(name, "last_layer does not require grad")
    if not outputs.requires_grad:
        raise _unreachable(name, f"{name} does not require grad")
    return last_layer


def gradient_norm(outputs: Tensor, last_layer: Tensor, gradient: Tensor, *, seed: Tensor, name: str) -> Tensor:
    """Norm of the gradient at ``last_layer``, given the one at ``outputs``; the graph is kept.

    ``seed`` multiplies the gradient on its way back and is divided out of the norm, in full precision.
    """
    _refuse_new_static_graph(outputs, last_layer)
    (found,) = torch.autograd.grad(
        outputs,
        last_layer,
        grad_outputs=(gradient * seed).to(outputs.dtype),
        retain_graph=True,
        allow_unused=True,
    )
    if found is None:
        raise _unreachable(name, "last_layer is not in its graph")
    norm: Tensor = torch.linalg.vector_norm(to_full_precision(found)) / seed
    return norm


def _unreachable(name: str, reason: str) -> ValueError:
    return ValueError(
        f"The adaptive weight needs the gradient of {name} at last_layer, but {reason}. Likely causes: the layer is "
        "frozen, the decoder ran under torch.no_grad(), activation checkpointing with use_reentrant=True, or "
        "per-module sharding that replaced the parameter. Pass the weight that the decoder used in this step."
    )


def _refuse_new_static_graph(outputs: Tensor, last_layer: Tensor) -> None:
    """Raises if an unstarted ``DistributedDataParallel(static_graph=True)`` lies between the two tensors.

    Such a wrapper sets up its synchronization in the first backward pass through its outputs, for which it puts a node
    of its own into the graph. If that pass is the internal one, which ends at the last layer, it never synchronizes.
    """
    for node in _path(outputs, last_layer):
        reference = getattr(node, "ddp_weakref", None)
        wrapper = reference() if callable(reference) else None
        if getattr(wrapper, "static_graph", False):
            raise RuntimeError(
                "The adaptive weight's gradient would be the first backward pass of "
                "DistributedDataParallel(static_graph=True), which would then never synchronize gradients. "
                "Wrap the model with static_graph=False."
            )


def refuse_one_time_graph(outputs: Tensor, last_layer: Tensor) -> None:
    """Raises if a compiled graph between the two tensors overwrites what it saved in its first backward pass.

    The compiler decides so for good if no graph is kept in that pass, and then refuses the adaptive weight, which has
    to keep it.
    """
    for node in _path(outputs, last_layer):
        metadata = getattr(getattr(node, "_forward_cls", None), "metadata", None)
        if getattr(metadata, "bw_donated_idxs", None):
            raise RuntimeError(
                "The adaptive weight will need several backward passes through the graph between the last layer and "
                "the reconstructions, but torch.compile has made that graph for a single one. Compile the last layer "
                "apart, by torch.compiler.disable(lambda *_: None) as its forward pre-hook, or set "
                "torch._functorch.config.donated_buffer = False before the first forward."
            )


def _path(outputs: Tensor, last_layer: Tensor) -> list[Any]:
    """Autograd nodes on the shortest way back from ``outputs`` to ``last_layer``; empty if there is none."""
    before: dict[Any, Any] = {} if outputs.grad_fn is None else {outputs.grad_fn: None}
    queue = deque(before)
    while queue:
        node = queue.popleft()
        if node is last_layer.grad_fn or getattr(node, "variable", None) is last_layer:
            path = [node]
            while before[path[-1]] is not None:
                path.append(before[path[-1]])
            return path
        for following, _ in node.next_functions:
            if following is not None and following not in before:
                before[following] = node
                queue.append(following)
    return []
