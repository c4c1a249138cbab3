"""The check of a quantizer by a plain version of it."""

from typing import Any

import torch
from torch import Tensor

from ._compare import clone
from ._quantizer_gradients import gradients_differ, grads_of, trained_parameters
from ._quantizer_subject import QUANTIZER, QuantizerSubject
from ._report import require

_PRECISIONS = ((torch.float32, 3), (torch.float64, 10))


@QUANTIZER.check(
    rule="values and all gradients, at the input and at every parameter, are those of the declared reference",
    cause="a formula that is not the one that was meant: a factor, a sign, a stage that sees another one's residual",
    applies=lambda subject: subject.traits.reference is not None,
    needs="reference=, what it should compute, written plainly",
)
def check_reference(quantizer: QuantizerSubject) -> None:
    """Guards quantizers of any kind by a plain version of them; in evaluation only where training is stochastic.

    If strict, in float64 as well, to ten digits.

    Fails it::

        residual = residual - quantized  # without detach(): the commitment of later stages has no gradient
    """
    for training in quantizer.modes:
        module = quantizer.started(training=training)
        with torch.no_grad():  # as after a step of an optimizer
            for parameter in trained_parameters(module):
                parameter.mul_(1 + 0.5 * torch.rand_like(parameter))
        vectors = torch.randn(40, quantizer.traits.dim)
        vectors[::7, 0] = 0.0  # which has no sign
        for dtype, digits in _PRECISIONS[: 1 + quantizer.traits.strict]:
            twins, inputs = [clone(module).to(dtype) for _ in range(2)], vectors.to(dtype)
            found = _answer(quantizer, twins[0], inputs)
            for name, expected in _plain_answer(quantizer, twins[1], inputs).items():
                text = gradients_differ(found[name].double(), expected.double(), digits=digits)
                require(not text, f"{'training' if training else 'evaluation'}, {dtype}, {name}: {text}")


def _answer(quantizer: QuantizerSubject, module: Any, vectors: Tensor) -> dict[str, Tensor]:
    leaf = vectors.clone().requires_grad_()
    quantized, indices, loss, _ = quantizer.call(module, quantizer.from_vectors(leaf))
    return _with_gradients(module, leaf, quantizer.vectors(quantized), quantizer.flat(indices), loss)


def _plain_answer(quantizer: QuantizerSubject, module: Any, vectors: Tensor) -> dict[str, Tensor]:
    leaf = vectors.clone().requires_grad_()
    if quantizer.traits.reference is None:
        raise TypeError("no reference is declared")
    return _with_gradients(module, leaf, *quantizer.traits.reference(module, leaf))


def _with_gradients(module: Any, leaf: Tensor, quantized: Tensor, indices: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """The answer, and the gradients of a weighted sum of all of it."""
    cotangent = torch.linspace(-1, 1, quantized.numel()).view(quantized.shape)
    total = (quantized * cotangent).sum() + 3.0 * loss.reshape(())
    named = {"the input": leaf, **{name: p for name, p in module.named_parameters() if p.requires_grad}}
    grads = {
        f"gradient at {name}": torch.zeros_like(tensor) if grad is None else grad
        for (name, tensor), grad in zip(named.items(), grads_of(total, list(named.values())), strict=True)
    }
    return {"quantized": quantized, "indices": indices, "loss": loss.reshape(()), **grads}
