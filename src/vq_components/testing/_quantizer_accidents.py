"""Checks of a quantizer: that what goes wrong in one place, or happens in between, harms nothing else."""

import math
from typing import Any

import torch
from torch import Tensor

from ._compare import backward, clone, drawn, floating_state, gap
from ._quantizer_subject import QUANTIZER, QuantizerSubject, has_codebook, has_encode, has_setter
from ._quantizer_updates import _can_be_set
from ._report import require


@QUANTIZER.check(
    rule="an entry that is not finite is chosen by no vector",
    cause="max() over scores, which gives NaN wherever there is one",
    applies=lambda subject: subject.traits.strict and _can_be_set(subject),
)
def check_broken_entry(subject: QuantizerSubject) -> None:
    """Guards all other entries against one that training has broken.

    Fails it::

        return (z @ codebook.T - codebook.square().sum(dim=1) / 2).argmax(dim=1)
    """
    for training in subject.modes:
        module, z = subject.started(training=training), subject.input(100)
        entries = subject.codebook(module)
        entries[3] = 50.0  # far from all
        expected = subject.call_copy(module, z).indices
        for bad in (torch.nan, torch.inf, -torch.inf):
            entries[3, -1] = bad
            differ = int((subject.call_copy(module, z).indices != expected).sum())
            require(differ == 0, f"an entry with {bad}: {differ} of {expected.numel()} indices change")


@QUANTIZER.check(
    rule="a module that has been called goes on from what is loaded, as one that has not",
    cause="norms or entries that are kept from call to call, and that load_state_dict leaves as they are",
)
def check_loading_after_use(subject: QuantizerSubject) -> None:
    """Guards evaluations of one checkpoint after the other in one module.

    Fails it::

        if self._squares is None:
            self._squares = self.codebook.square().sum(dim=1)
    """
    # Other entries, and other projections, of the same kind.
    state = {
        name: tensor.flip(tuple(range(tensor.ndim - 1))) if tensor.is_floating_point() else tensor
        for name, tensor in subject.started().state_dict().items()
    }
    for training in subject.modes:
        used, fresh = (subject.fresh().train(training) for _ in range(2))
        for _ in range(2):
            subject.call(used, subject.input(24))
        z, results = subject.input(48), []
        for module in (used, fresh):
            module.load_state_dict(state)
            with drawn(1):
                results.append(subject.call(module, z))
        text = subject.results_differ(*results)
        require(not text, f"{'training' if training else 'evaluation'}, loaded after two calls, and before: {text}")


@QUANTIZER.check(
    rule="a vector that is finite, but too large to be squared, enters no statistics and no codebook",
    cause="a test for NaN and infinity alone: the distance overflows, and averages of it never come back",
    applies=lambda subject: subject.traits.strict and _can_be_set(subject),
)
def check_huge_vector(subject: QuantizerSubject) -> None:
    """Guards averages and entries against one overflow in mixed precision.

    Fails it::

        seen = z.isfinite().all(dim=1)
    """
    module = subject.started()
    # The first one is finite when it is squared; its distance to an entry as large on the other side is not.
    first = 0.7 * math.sqrt(torch.finfo(torch.float32).max / subject.traits.dim)
    for size in (first, 3e19, -1e30, 3e38):
        vectors = subject.vectors(subject.input(64)).clone()
        vectors[3] = size
        loss = float(subject.call(module, subject.from_vectors(vectors)).loss.detach())
        hidden = math.isfinite(loss) and size != first
        require(not hidden, f"one vector of {size}: the loss is {loss:.6g}, which hides it")
        subject.update(module)
        state = floating_state(module)
        bad = [name for name, value in state.items() if bool(value.isnan().any())]
        require(not bad, f"after a vector of {size}: NaN in {', '.join(bad)}")
        largest = float(subject.codebook(module).abs().max())
        require(largest < 1e6, f"after a vector of {size}, an entry has values up to {largest:.3g}")


@QUANTIZER.check(
    rule="a vector that is not finite harms no other vector, no index and no statistics",
    cause="averages by a product with a one-hot matrix, where NaN * 0 is NaN: one vector poisons all entries; or NaN "
    "that is converted to an integer",
)
def check_not_finite(subject: QuantizerSubject) -> None:
    """Guards the codebook against one bad batch, and the range of indices.

    Where a mask is offered, and results are strict, statistics must be those without the vector, and the loss must show
    that there is one: NaN, which a gradient scaler sees.

    Fails it::

        sums = one_hot.T @ z  # with a NaN in z, all sums are NaN
    """
    for training in subject.modes:
        for bad in (torch.nan, torch.inf, -torch.inf):
            module = subject.started(training=training)
            vectors = subject.vectors(subject.input(40))
            clean = subject.call_copy(module, subject.from_vectors(vectors))
            vectors = vectors.clone()
            vectors[3, 0] = bad
            others = torch.arange(len(vectors)) != 3
            if subject.traits.mask and subject.traits.strict and not subject.traits.stochastic:
                _check_counts_as_masked(subject, clone(module), torch.where(others[:, None], vectors, bad), others)
            result = subject.call(module, subject.from_vectors(vectors))
            loss = float(result.loss.detach().sum())
            hidden = subject.traits.strict and math.isfinite(loss)
            require(not hidden, f"one vector with {bad}: the loss is {loss:.6g}, which hides it")
            if subject.traits.strict and result.loss.requires_grad:
                _check_gradients(subject, module, result.loss, bad)
            text = gap(subject.flat(result.indices)[others], subject.flat(clean.indices)[others])
            require(not text, f"one vector with {bad}: {text} in the indices of the others")
            if subject.traits.strict and has_encode(subject) and not training:
                text = gap(subject.encode(module, subject.from_vectors(vectors)), result.indices)
                require(not text, f"one vector with {bad}: {text} in the indices of encode and of the forward")
            _check_after_bad(subject, module, result.indices, bad)


def _entries_among_parameters(subject: QuantizerSubject, module: Any) -> list[str]:
    """Names of the parameters that are the codebook itself, and nothing that it is computed from."""
    place = subject.codebook(module).data_ptr() if has_codebook(subject) else None
    return [name for name, parameter in module.named_parameters() if parameter.data_ptr() == place]


def _check_gradients(subject: QuantizerSubject, module: Any, loss: Tensor, bad: float) -> None:
    """Of the codebook; a projection before it belongs to the encoder, whose gradient is not finite."""
    backward(loss)
    entries = _entries_among_parameters(subject, module)
    for name, parameter in module.named_parameters():
        learned = not subject.traits.trains_codebook or name in entries
        finite = parameter.grad is None or bool(parameter.grad.isfinite().all())
        require(finite or not learned, f"one vector with {bad}: the loss's gradient at {name} is not finite")


def _check_counts_as_masked(subject: QuantizerSubject, module: Any, vectors: Tensor, others: Tensor) -> None:
    masked, where = clone(module), "a vector that is not finite, next to the same with a mask over it"
    result = subject.call(module, subject.from_vectors(vectors))
    expected = subject.call(masked, subject.from_vectors(vectors), others.view(-1, *[1] * len(subject.space)))
    text = subject.states_differ(module, masked)
    require(not text, f"{where}: {text}")
    for name in {"perplexity", "usage"} & (result.terms or {}).keys() & (expected.terms or {}).keys():
        text = subject.about((result.terms or {})[name], (expected.terms or {})[name])
        require(not text, f"{where}: {text} in {name}")
    if result.quantized.requires_grad:
        backward(result.quantized.sum())
        backward(expected.quantized.sum())
        for name in _entries_among_parameters(subject, module):
            found, meant = module.get_parameter(name).grad, masked.get_parameter(name).grad
            require((found is None) == (meant is None), f"{where}: the output's gradient at {name} is missing in one")
            text = subject.about(found, meant) if found is not None and meant is not None else ""
            require(not text, f"{where}: {text} in the output's gradient at {name}")


def _check_after_bad(subject: QuantizerSubject, module: object, indices: Tensor, bad: float) -> None:
    size = subject.traits.codebook_size
    inside = size is None or bool(((indices >= 0) & (indices < size)).all())
    require(inside, f"one vector with {bad}: indices from {int(indices.min())} to {int(indices.max())}")
    subject.update(module)
    subject.call(module, subject.input(40))
    subject.update(module)
    if has_codebook(subject):
        entries = subject.codebook(module)
        lost = int((~entries.isfinite().all(dim=1)).sum())
        require(lost == 0, f"one vector with {bad}: {lost} of {len(entries)} entries are not finite two steps later")


@QUANTIZER.check(
    rule="the codebook may move between forward and backward: the gradient is that of the entries that were used",
    cause="a formula of its own that keeps the codebook itself for the backward, and no copy",
    applies=lambda subject: subject.traits.strict and has_setter(subject),
)
def check_codebook_moves_before_backward(subject: QuantizerSubject) -> None:
    """Guards losses of several forwards, and an update between the two passes.

    Fails it::

        ctx.codebook = codebook  # and an optimizer has moved it when backward() reads it
    """
    for training in subject.modes:
        start, z = subject.started(training=training), subject.input(64)
        gradients = []
        for factor in (1.0, 1.5):
            module, leaf = clone(start), z.clone().requires_grad_()
            result = subject.call(module, leaf)
            subject.codebook(module).mul_(factor)
            weights = torch.linspace(-1, 1, result.quantized.numel()).view(result.quantized.shape)
            backward(result.loss + (result.quantized * weights).sum())
            leaves = {"the input": leaf, **dict(module.named_parameters())}
            gradients.append({name: tensor.grad for name, tensor in leaves.items() if tensor.grad is not None})
        for name, expected in gradients[0].items():
            text = subject.about(gradients[1].get(name, torch.zeros_like(expected)), expected)
            require(not text, f"entries times 1.5 before backward(): {text} in the gradient at {name}")
