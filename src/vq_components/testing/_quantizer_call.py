"""The first check of a quantizer: whether it can be called as declared, and its answer read."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._compare import kind_of
from ._engine import BASIC, GATE
from ._quantizer_subject import QUANTIZER, QuantizerSubject
from ._report import attempt, require


def _is_number(loss: Any) -> bool:
    return isinstance(loss, (int, float)) or (isinstance(loss, Tensor) and loss.numel() == 1)


@QUANTIZER.check(
    rule="a call with an input as declared gives vectors, integer indices, and a number or None as the loss",
    cause="traits that do not fit, of which dim=, channel_dim= and space= say which inputs it takes, or an adapter "
    "that returns something else than (quantized, indices, loss)",
    rank=GATE,
)
def check_quantizer_call(subject: QuantizerSubject) -> None:
    """Guards the other checks against traits and adapters that do not fit: while it fails, they are not run.

    Fails it::

        adapter=lambda module, z: (module(z)[0], module(z)[1], module(z)[2])  # where the loss comes second
    """
    for rank in subject.traits.space:
        z = subject.to_layout(torch.randn(4, *(4, 6, 2)[:rank], subject.traits.dim))
        where = f"for input {tuple(z.shape)}"
        answer = attempt(where, partial(subject.adapter.call, subject.fresh(), z))
        few = f"{where}, the adapter returns {len(answer)} values, not (quantized, indices, loss)"
        require(len(answer) >= 2, few)
        quantized, indices = answer[:2]
        loss = answer[2] if len(answer) > 2 else None
        vectors = isinstance(quantized, Tensor) and quantized.is_floating_point() and quantized.ndim == z.ndim
        require(vectors, f"{where}, quantized is {kind_of(quantized)}")
        integers = isinstance(indices, Tensor) and not indices.is_floating_point() and indices.dtype != torch.bool
        require(integers, f"{where}, indices are {kind_of(indices)}")
        require(loss is None or _is_number(loss), f"{where}, the loss is {kind_of(loss)}")


@QUANTIZER.check(
    rule="in evaluation, one index stands for one output: vectors with equal indices have equal outputs",
    cause="digits that are weighted by another basis than their numbers of levels, an offset of one stage left out, or "
    "an output that is blended with the input",
    rank=BASIC,
)
def check_indices_tell_outputs(subject: QuantizerSubject) -> None:
    """Guards tokens as the only thing that a decoder needs to know, also where there is no way back from them.

    Fails it::

        basis = torch.cumprod(levels, 0) // levels[0]  # (levels[:i].prod()) for the i-th digit
    """
    module = subject.started(training=False)
    spread = torch.linspace(0.1, 3.0, 512)[:, None] * torch.randn(512, subject.traits.dim)
    result = subject.call(module, subject.from_vectors(spread))
    outputs = subject.vectors(result.quantized).detach()
    indices = subject.flat(result.indices).reshape(len(spread), -1)
    same = (indices[:, None] == indices).all(dim=2)
    first = same.int().argmax(dim=1)  # the first vector with the same index
    text = subject.about(outputs, outputs[first])
    require(
        not text,
        f"{len(set(first.tolist()))} indices of {len(spread)} vectors, compared with their first one: {text}",
    )
