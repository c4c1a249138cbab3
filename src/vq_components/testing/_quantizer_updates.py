"""Checks of a quantizer whose codebook learns outside of an optimizer: averages, start, and revival."""

import contextlib
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from ._compare import clone, differ, floating_state, importable, state_difference
from ._engine import missing
from ._quantizer_subject import QUANTIZER, QuantizerSubject, has_codebook, has_revival, has_setter
from ._report import require


def _two_phase(subject: QuantizerSubject) -> bool:
    return subject.traits.two_phase and has_codebook(subject) and has_revival(subject)


def _can_be_set(subject: QuantizerSubject) -> bool:
    """Of anybody's quantizer, as far as it has the methods; of this package's, what looks up free vectors."""
    traits = subject.traits
    free = has_revival(subject) or not (traits.strict or traits.composite)
    return traits.two_phase and has_setter(subject) and free and traits.distance == "euclidean"


_NEEDS_SETTER = missing(
    (lambda subject: subject.traits.two_phase, "two_phase=, of a quantizer with update_()"),
    (has_setter, "its method set_codebook_(entries)"),
    (lambda subject: subject.traits.distance == "euclidean", "distance='euclidean'"),
)


def _entries(subject: QuantizerSubject) -> Tensor:
    """A codebook ``(K, D)`` whose entries are well apart."""
    size, dim = subject.codebook(subject.fresh()).shape
    entries = torch.randn(size, dim) * 10.0
    if dim <= 2:  # where chance leaves too little room
        entries[:, 0] = 4.0 * torch.randperm(size) - 2.0 * size
    return entries


def _set(subject: QuantizerSubject, entries: Tensor, *, revive: bool) -> Any:
    module = subject.fresh()
    if not revive:
        _stop_revival(module)
    module.update_()
    module.set_codebook_(entries)
    return module


def _stop_revival(module: Any) -> None:
    if hasattr(module, "revival"):
        module.revival = None


def _different(entries: Tensor) -> int:
    """How many different rows there are."""
    return len(torch.unique(entries, dim=0))


def _near(entries: Tensor, rows: Tensor, *, spread: float = 0.1) -> Tensor:
    """Vectors near the entries at ``rows``."""
    return entries[rows] + spread * torch.randn(len(rows), entries.shape[1])


@QUANTIZER.check(
    rule="a training forward only counts; update_() applies; without it the next training forward does",
    cause="the codebook is written in forward, or the update is applied twice or never",
    applies=_two_phase,
)
def check_two_phases(subject: QuantizerSubject) -> None:
    """Guards when the codebook changes: never between a look-up and its backward.

    Fails it::

        def forward(self, z):
            ...
            self.codebook.copy_(averages)
    """
    batches = [subject.input(64) for _ in range(4)]
    lazy, manual = subject.fresh(), subject.fresh()
    manual.update_()
    for step, z in enumerate(batches):
        out, expected = subject.call(lazy, z), subject.call(manual, z)
        text = subject.results_differ(out, expected)
        require(not text, f"step {step}, applied by the next forward and by update_(): {text}")
        after = subject.codebook(manual).clone()
        subject.call(manual.eval(), z)
        manual.train()
        require(torch.equal(subject.codebook(manual), after), f"step {step}: an evaluation applied the update")
        manual.update_()
        if step > 0:
            require(subject.traits.decay is None or not torch.equal(subject.codebook(manual), after), "no update")
    manual = subject.started()
    before = subject.codebook(manual).clone()
    for z in batches:
        subject.call(manual, z)
    text = differ(subject.codebook(manual), before, rtol=0, atol=0)
    require(not text, f"four forwards without update_() changed the codebook: {text}")
    manual.update_()
    after = subject.codebook(manual).clone()
    manual.update_()
    text = differ(subject.codebook(manual), after, rtol=0, atol=0)
    require(not text, f"a second update_() without a forward changed the codebook: {text}")


@QUANTIZER.check(
    rule="update_after(optimizer) applies one update after each step, until it is removed",
    cause="a hook before the step, or one that stays after remove()",
    applies=lambda subject: (
        subject.traits.two_phase and not subject.traits.stochastic and hasattr(subject.fresh(), "update_after")
    ),
)
def check_update_after(subject: QuantizerSubject) -> None:
    """Guards the optimizer's hook, by comparison with update_() in the same places.

    Fails it::

        optimizer.register_step_pre_hook(update)
    """
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    _check_untied(subject, optimizer)  # first: ties that copies share would reach all that come after
    hooked, called = subject.fresh(), subject.fresh()
    called.update_()
    handle = hooked.update_after(_Wrapped(optimizer))
    for step in range(4):
        for z in (subject.input(32), subject.input(32)):
            text = subject.results_differ(subject.call(hooked, z), subject.call(called, z))
            require(not text, f"step {step}: {text}")
        parameter.grad = torch.ones(1)
        optimizer.step()
        called.update_()
        if has_codebook(subject):
            text = differ(subject.codebook(hooked), subject.codebook(called), rtol=1e-5, atol=1e-6)
            require(not text, f"after step {step}, compared with update_(): {text}")
    if has_codebook(subject):
        _check_hook(subject, hooked, handle, optimizer)


class _Wrapped(torch.optim.Optimizer):
    """As Accelerate does it: an optimizer by its class alone, whose own hooks never run."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def _check_untied(subject: QuantizerSubject, optimizer: torch.optim.Optimizer) -> None:
    """What is tied to no optimizer, or no longer, is as if it had never been."""
    inputs, free = [subject.input(32) for _ in range(3)], subject.fresh()
    expected = [subject.call(free, z) for z in inputs]
    tied, removed = subject.fresh(), subject.fresh()
    handle = tied.update_after(optimizer)
    removed_handle = removed.update_after(optimizer)
    twice = subject.fresh()
    kept_handle, other_handle = twice.update_after(optimizer), twice.update_after(optimizer)
    other_handle.remove()
    first = subject.call(twice, inputs[0])
    for _ in range(2):
        text = subject.results_differ(subject.call(twice, inputs[0]), first)
        require(not text, f"with one of two handles removed, a forward updates before the optimizer's step: {text}")
    kept_handle.remove()
    for _ in range(2):  # once more is no harm
        removed_handle.remove()
    untied_ones = {"a copy": clone(tied), "after remove(), it": removed}
    if all(importable(type(part)) for part in tied.modules()):
        untied_ones["a pickle"] = pickle.loads(pickle.dumps(tied))
    for name, untied in untied_ones.items():
        for z, answer in zip(inputs, expected, strict=True):
            text = subject.results_differ(subject.call(untied, z), answer)
            require(not text, f"{name} waits for the optimizer: {text}")
    handle.remove()


def _check_hook(subject: QuantizerSubject, hooked: Any, handle: Any, optimizer: torch.optim.Optimizer) -> None:
    """The update comes after a step that succeeds, and no longer once the handle is removed."""
    subject.call(hooked, subject.input(32))
    before = subject.codebook(hooked).clone()
    with contextlib.suppress(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    require(torch.equal(subject.codebook(hooked), before), "the update comes before the step: one that fails updates")
    optimizer.step()
    handle.remove()
    subject.call(hooked, subject.input(32))
    before = subject.codebook(hooked).clone()
    optimizer.step()
    require(torch.equal(subject.codebook(hooked), before), "a step after remove() still updates")
    twin = clone(hooked)
    twin.update_()
    z = subject.input(32)
    for module in (hooked, twin):
        subject.call(module, z)
    text = state_difference(floating_state(hooked), floating_state(twin))
    require(not text, f"after remove() a forward does not apply what the one before it counted: {text}")


@QUANTIZER.check(
    rule="moving averages: N <- decay N + (1 - decay) n, m <- decay m + (1 - decay) sum z, "
    "e = (m + eps e) / (N + eps) for entries with a vector",
    cause="decay and 1 - decay swapped, sums of one-hot vectors divided twice, or entries without a vector that move",
    applies=lambda subject: _can_be_set(subject) and subject.traits.decay is not None,
    needs=lambda subject: "" if subject.traits.decay is None else _NEEDS_SETTER(subject),
)
def check_moving_average(subject: QuantizerSubject) -> None:
    """Guards the update by a float64 recursion, over several updates in which some entries get no vector.

    Fails it::

        cluster_size.lerp_(counts, decay)  # must be 1 - decay
    """
    entries = _entries(subject)
    module = _set(subject, entries, revive=False)
    decay, eps = subject.traits.decay or 0.0, subject.traits.eps
    expected, sizes = entries.double(), torch.ones(len(entries)).double()
    sums = expected.clone()
    for step in range(5):
        rows = torch.randint(len(entries) // 2, (40,)) + (step % 2) * (len(entries) // 4)
        z = _near(subject.codebook(module), rows, spread=0.5)
        indices = subject.flat(subject.call(module, subject.from_vectors(z)).indices)
        module.update_()
        counts = torch.bincount(indices, minlength=len(entries)).double()
        new = torch.zeros_like(expected).index_add_(0, indices, z.double())
        sizes = decay * sizes + (1 - decay) * counts
        sums = decay * sums + (1 - decay) * new
        mean = (sums + eps * expected) / (sizes + eps)[:, None]
        expected = torch.where((counts > 0)[:, None], mean, expected)
        text = differ(subject.codebook(module), expected, rtol=1e-4, atol=1e-4)
        require(not text, f"after update {step + 1} with decay={decay}: {text}")


@QUANTIZER.check(
    rule="the first training batch gives the codebook its entries: different vectors of it",
    cause="a start with repeated vectors, or one that is repeated in the next batch",
    applies=lambda subject: (
        _can_be_set(subject) and subject.traits.starts_from_data and (subject.traits.codebook_size or 0) <= 1024
    ),
    needs=lambda subject: _NEEDS_SETTER(subject) if subject.traits.starts_from_data else "",
)
def check_start_from_data(subject: QuantizerSubject) -> None:
    """Guards the start, for more and for fewer vectors than entries, and that it happens once.

    Fails it::

        self.codebook.copy_(z[torch.randint(len(z), (size,))])  # with repetitions
    """
    size = len(subject.codebook(subject.fresh()))
    module, z = subject.fresh(), subject.input(3 * size) + 5.0
    if subject.traits.strict:
        subject.call(module, z[:0])  # nothing to start from yet
        subject.call(module, z * torch.nan)
    result = subject.call(module, z)
    entries, vectors = subject.codebook(module), subject.vectors(z)
    apart = torch.cdist(entries.double(), vectors.double()).amin(dim=1)
    require(float(apart.max()) < 1e-4, f"{int((apart >= 1e-4).sum())} entries are no vectors of the batch")
    require(_different(entries) == size, f"{_different(entries)} of {size} entries are different")
    require(
        len(torch.unique(result.indices)) == size, f"{len(torch.unique(result.indices))} of {size} entries are used"
    )
    started = entries.clone()
    _stop_revival(module)
    if subject.traits.decay is None:
        subject.call(module, subject.input(3 * size) - 5.0)
        text = differ(subject.codebook(module), started, rtol=0, atol=0)
        require(not text, f"the second batch changed it again: {text}")
    if subject.traits.strict:
        half, z = subject.fresh(), z.clone()
        z[1::2] = torch.inf
        subject.call(half, z)
        require(bool(subject.codebook(half).isfinite().all()), "vectors that are not finite become entries")
        if subject.traits.dim > 1:
            sparse = subject.vectors(subject.input(3 * size)).index_fill(1, torch.tensor(0), 0.0)
            subject.call(half := subject.fresh(), subject.from_vectors(sparse))
            idle = subject.codebook(half)[:, 0].any()
            require(not bool(idle), "no start from vectors with a channel of zeros")
    few = subject.fresh()
    vectors = subject.vectors(subject.input(64))[: max(size // 3, 1)]
    subject.call(few, subject.from_vectors(vectors))
    apart = torch.cdist(vectors.double(), subject.codebook(few).double()).amin(dim=1)
    require(float(apart.max()) < 1e-4, f"{len(vectors)} vectors, {int((apart >= 1e-4).sum())} of them are no entry")
    inside = (subject.codebook(few) >= vectors.amin(0) - 1e-5) & (subject.codebook(few) <= vectors.amax(0) + 1e-5)
    require(bool(inside.all()), f"{len(vectors)} vectors: {int((~inside.all(1)).sum())} entries lie outside of them")
    different = _different(subject.codebook(few))
    least = size if subject.traits.strict and len(vectors) ** 2 >= size else len(vectors) + 1
    require(len(vectors) < 3 or different >= least, f"{len(vectors)} vectors give {different} different entries")
