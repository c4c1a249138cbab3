"""Checks of a quantizer whose stages quantize what the ones before them have left."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ._compare import clone, drawn, state_difference, state_of, use_of
from ._quantizer_adapters import QuantizerResult, revives_itself
from ._quantizer_subject import QUANTIZER, QuantizerSubject
from ._report import require


def _is_residual(subject: QuantizerSubject) -> bool:
    return (
        subject.traits.strict
        and len(subject.traits.index_shape) == 1
        and subject.dim_out == subject.traits.dim
        and all(hasattr(subject.fresh(), name) for name in ("dropout", "quantizers", "decode"))
    )


def _drops(subject: QuantizerSubject) -> bool:
    return _is_residual(subject) and subject.fresh().dropout > 0


def _prefixes(subject: QuantizerSubject, module: Any, result: QuantizerResult, z: Tensor) -> list[Tensor]:
    """The sums of the first 1, 2, ... stages' entries, float64 vectors."""
    indices, sums = result.indices, []
    for count in range(1, indices.shape[-1] + 1):
        kept = torch.where(torch.arange(indices.shape[-1]) < count, indices, -1)
        sums.append(subject.vectors(subject.decode(module, kept, z)).detach().double())
    return sums


@QUANTIZER.check(
    rule="a coarse code is the first stages' indices: they are what they are in the full one, and each term is the sum "
    "or mean over the stages in use",
    cause="stages in use that see what unused ones have left, or terms that count unused stages",
    applies=_is_residual,
)
def check_stages_in_use(subject: QuantizerSubject) -> None:
    """Guards codes of fewer stages, with and without dropout: indices, output, errors, usage and perplexity.

    Fails it::

        terms = {key: sum(out.terms[key] for out in outputs) / len(outputs)}  # unused stages count as zeros
    """
    size = subject.traits.codebook_size or 1
    for training in (True, False):
        module, z = subject.started(training=training), subject.input(40)
        full = subject.flat(subject.call_copy(clone(module).eval(), z).indices)
        ratios = []
        for seed in range(12 if training and subject.traits.stochastic else 1):
            result = subject.call_copy(module, z, seed=seed)
            indices, sums = subject.flat(result.indices), _prefixes(subject, module, result, z)
            used = int((indices[0] >= 0).sum())
            same = torch.where(torch.arange(indices.shape[1]) < used, full, -1)
            wrong = int((indices != same).sum())
            require(wrong == 0, f"{used} stages in use, {wrong} indices differ from the full code's and -1")
            text = subject.about(subject.vectors(result.quantized).double(), sums[-1])
            require(not text, f"{used} stages in use, output and sum of their entries: {text}")
            errors = [(subject.vectors(z).double() - each).square().mean() for each in sums[:used]]
            terms = result.terms or {}
            counts = torch.stack([torch.bincount(stage, minlength=size) for stage in indices.T[:used]])
            expected = {name: value.mean() for name, value in use_of(counts).items()}
            expected |= dict.fromkeys(("commitment", "codebook"), torch.stack(errors).sum())
            for name, value in expected.items():
                text = subject.about(terms[name].double(), value)
                require(not text, f"{used} stages in use, the term {name}: {text}")
            ratios.append(float(result.loss.detach() / terms["commitment"]))
        spread = max(ratios) - min(ratios)
        require(spread <= 1e-3 * max(ratios), f"the loss is {min(ratios):.5g} to {max(ratios):.5g} times the errors")


@QUANTIZER.check(
    rule="dropout leaves stages out with its probability: then each number of stages from one up is as likely",
    cause="the probability of keeping in place of that of dropping, or a range that is one too short",
    applies=_drops,
)
def check_stage_dropout(subject: QuantizerSubject) -> None:
    """Guards how often how many stages are in use.

    Fails it::

        if torch.rand(()) < self.dropout:
            count = torch.randint(1, len(stages), ())  # never all of them but one
    """
    stages = subject.traits.index_shape[0]
    for dropout, draws in ((0.25, 150), (1.0, 100)):
        module, z = subject.started(), subject.input(1)
        module.dropout = dropout
        indices = [subject.flat(subject.call(module, z).indices)[0] for _ in range(draws)]
        used = torch.stack([(each >= 0).sum() for each in indices])
        for count in range(1, stages + 1):
            share = dropout / stages + (1 - dropout) * (count == stages)
            found = float((used == count).double().mean())
            text = f"dropout {dropout}: {count} of {stages} stages in {found:.1%} of {draws} forwards, not {share:.1%}"
            require(abs(found - share) <= 4.5 * math.sqrt(share * (1 - share) / draws), text)


@QUANTIZER.check(
    rule="a stage that a forward leaves out counts nothing and learns nothing of it",
    cause="stages that run on all vectors, and whose result alone is left out",
    applies=_drops,
)
def check_unused_stages_rest(subject: QuantizerSubject) -> None:
    """Guards the statistics and gradients of later stages against vectors they were not used for.

    Fails it::

        outputs = [stage(residual) for stage in self.quantizers]
        quantized = sum(outputs[:count])
    """
    for seed in range(12):
        module = subject.started()
        before = state_of(module)
        with drawn(seed):
            result = subject.call(module, subject.input(60).requires_grad_())
        used = int((subject.flat(result.indices)[0] >= 0).sum())
        torch.autograd.backward(result.loss.reshape(()) + result.quantized.sum())
        after = state_of(module)
        for number in range(subject.traits.index_shape[0]):
            prefix = f"quantizers.{number}."
            text = state_difference(*({k: v for k, v in s.items() if k.startswith(prefix)} for s in (after, before)))
            parameters = [p for name, p in module.named_parameters() if name.startswith(prefix)]
            moved = any(p.grad is not None and bool(p.grad.any()) for p in parameters)
            if number >= used:
                require(not text, f"stage {number + 1}, when {used} are in use: {text}")
                require(not moved, f"stage {number + 1} gets a gradient when {used} are in use")
            else:
                require(bool(text) or moved, f"stage {number + 1} learns nothing when {used} are in use")


@QUANTIZER.check(
    rule="stages that revive in one update draw vectors of their own",
    cause="one seed for all stages: they revive at the same positions, of which the stages before took the best",
    applies=lambda subject: _is_residual(subject) and not subject.traits.stochastic and _all_revive(subject),
)
def check_stages_draw_apart(subject: QuantizerSubject) -> None:
    """Guards later stages against reviving from what the first one has just left over.

    Fails it::

        keys = -torch.log(hash_to_unit(position, seed=updates))  # without the number of the stage
    """
    module = subject.fresh()
    module.update_()
    size, taken = subject.traits.codebook_size or 1, []
    residual = torch.randn(20 * size, subject.traits.dim)
    for number, stage in enumerate(module.quantizers):
        stage.revival = dataclasses.replace(stage.revival, decay=0.0)  # an entry is dead after one update
        # Far from all vectors, so that these are alike: what is drawn decides.
        stage.set_codebook_(1e3 + 1e-3 * torch.randn(size, subject.traits.dim) - (1e3 * (number > 0)))
    subject.call(module, subject.from_vectors(residual))
    before = [stage.codebook.detach().clone() for stage in module.quantizers]
    module.update_()
    for stage, old in zip(module.quantizers, before, strict=True):
        apart = torch.cdist(stage.codebook.detach().double(), residual.double())
        moved = (stage.codebook != old).any(dim=1)
        taken.append(set(apart.argmin(dim=1)[moved].tolist()))
        residual = residual - old[torch.cdist(residual, old).argmin(dim=1)]
    for number, other in enumerate(taken[1:], start=2):
        shared = len(taken[0] & other) / max(len(other), 1)
        require(len(other) < 4 or shared < 0.8, f"stage {number} revives at {shared:.0%} of the first one's positions")


def _all_revive(subject: QuantizerSubject) -> bool:
    stages = list(subject.fresh().quantizers)
    return len(stages) > 1 and all(revives_itself(stage) and stage.revival is not None for stage in stages)


def _innermost(module: Any) -> list[Any]:
    """The stages; those of a stage that is residual itself in its place."""
    return [part for stage in module.quantizers for part in (_innermost(stage) if _drop(stage) == 0 else [stage])]


def _drop(module: Any) -> Any:
    """The share of forwards in which a residual quantizer leaves stages out; None for others."""
    return getattr(module, "dropout", None) if hasattr(module, "quantizers") else None


def _starts_in_turn(subject: QuantizerSubject) -> bool:
    if not subject.traits.strict or _drop(subject.fresh()) != 0:
        return False
    books = [getattr(stage, "embedding", None) for stage in _innermost(subject.fresh())]
    # Averages move entries that have not started as well.
    learned = all(isinstance(getattr(book, "weight", None), torch.nn.Parameter) for book in books)
    return learned and all(not bool(getattr(book, "started", True)) for book in books)


@QUANTIZER.check(
    rule="stages start from data one update after the other",
    cause="a start of all stages from one batch, of which the stage before has just taken its entries",
    applies=_starts_in_turn,
)
def check_stages_start_in_turn(subject: QuantizerSubject) -> None:
    """Guards later stages against a start from what the first one stands for exactly.

    Fails it::

        for stage in stages:
            stage.start_from(residual)  # zero for every vector that became an entry
            residual = residual - stage(residual)
    """
    z = subject.input(12 * (subject.traits.codebook_size or 16))
    for by_hand in (True, False):
        module = subject.fresh()
        if by_hand:
            module.update_()  # from now on, only these calls update; else each forward does, before it looks up
        stages = _innermost(module)
        for update, _ in enumerate(stages):
            before = [stage.codebook.detach().clone() for stage in stages]
            for _ in range(1 + by_hand):
                subject.call(module, z)
            if by_hand:
                module.update_()
            for number, stage in list(enumerate(stages))[update:]:
                same = torch.equal(stage.codebook, before[number])
                at = f"at update {update + 1}, stage {number + 1}"
                require(same == (number > update), f"{at} has {'not ' if same else ''}taken its entries")
