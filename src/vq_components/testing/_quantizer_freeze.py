"""Checks of a quantizer that can be frozen."""

from typing import Any

import torch
from torch import Tensor

from ._compare import backward, clone, state_difference, state_of
from ._quantizer_subject import QUANTIZER, QuantizerSubject, has_decode
from ._report import require


def _can_freeze(subject: QuantizerSubject) -> bool:
    module = subject.fresh()
    return all(callable(getattr(module, name, None)) for name in ("freeze", "unfreeze"))


def _train(subject: QuantizerSubject, module: Any, z: Tensor) -> list[str]:
    """A training step's forward, backward and update; names of the parameters that got gradients."""
    module.zero_grad(set_to_none=True)
    result = subject.call(module, z)
    loss = (result.quantized * torch.randn_like(result.quantized)).sum() + result.loss.reshape(())
    if loss.requires_grad:
        backward(loss)
    subject.update(module)
    return [name for name, parameter in module.named_parameters() if parameter.grad is not None]


@QUANTIZER.check(
    rule="frozen, a quantizer stays as it is in training and hands on the gradient; unfrozen, it learns again",
    cause="freeze() that sets requires_grad alone: averages, starts and revivals go on",
    applies=_can_freeze,
)
def check_freeze(subject: QuantizerSubject) -> None:
    """Guards a second training on fixed tokens, at any stage of life.

    Fails it::

        def freeze(self):
            self.codebook.requires_grad_(False)  # and the forward goes on counting
    """
    for stage, module in subject.at_stages().items():
        subject.update(module)  # this too is remembered: that updates are called by hand
        if stage != "fresh":
            subject.call(module, subject.input(64))
        z, free = subject.input(64), clone(module).eval()
        module.freeze()
        found = subject.input_gradient(clone(module).eval(), z)[0]
        text = subject.about(found, subject.input_gradient(free, z)[0])
        require(not text, f"{stage}: gradient of the input, compared with that before freezing: {text}")
        before = state_of(module)
        _check_hook_rests(subject, module, before, stage)
        for scale in (1.0, 100.0):
            named = _train(subject, module, (subject.input(64) * scale).requires_grad_())
            text = state_difference(state_of(module), before)
            require(not text, f"{stage}: {text}")
            require(not subject.traits.strict or not named, f"{stage}: gradients at {', '.join(named[:5])}")
        if subject.traits.strict and has_decode(subject):
            learned = subject.decode(module, subject.call_copy(module, z).indices, z).requires_grad
            require(not learned, f"{stage}: what decode returns requires grad")
        named = _train(subject, module.eval(), subject.input(64).requires_grad_())
        require(not subject.traits.strict or not named, f"{stage}: gradients in evaluation at {', '.join(named[:5])}")
        module.train().unfreeze()
        batch = subject.input(64)  # the same for both: which candidates win is a matter of the batch
        named = _train(subject, module, batch.clone().requires_grad_())
        moved = {*named, *_changed(module, before)}
        require(bool(moved) or not subject.traits.learns, f"{stage}: after unfreeze() nothing learns")
        if subject.traits.strict and not subject.traits.stochastic:
            named = _train(subject, free.train(), batch.clone().requires_grad_())
            rest = sorted({*named, *_changed(free, before)} - moved)
            require(not rest, f"{stage}: after unfreeze() still at rest: {', '.join(rest[:5])}")


def _changed(module: Any, before: dict[str, Tensor]) -> set[str]:
    """Names of parameters and buffers that are not as they were."""
    return {name for name, tensor in state_of(module).items() if not torch.equal(tensor, before[name])}


def _check_hook_rests(subject: QuantizerSubject, module: Any, before: dict[str, Tensor], stage: str) -> None:
    """What was counted before freeze() waits, when the hook of an optimizer comes too."""
    if not hasattr(module, "update_after"):
        return
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    handle = module.update_after(optimizer)
    subject.call(module, subject.input(64))
    optimizer.step()
    text = state_difference(state_of(module), before)
    require(not text, f"{stage}, after a step of an optimizer that it is tied to: {text}")
    handle.remove()
