"""Checks of a quantizer that revives dead entries."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ._compare import clone, differ
from ._quantizer_adapters import revives_itself
from ._quantizer_subject import QUANTIZER, QuantizerSubject, has_revival
from ._quantizer_updates import _can_be_set, _different, _entries, _near, _set
from ._report import require


def _revives(subject: QuantizerSubject) -> bool:
    return _can_be_set(subject) and has_revival(subject) and subject.fresh().revival is not None


@QUANTIZER.check(
    rule="a training by gradient moves entries by the optimizer alone: updates move none but dead ones",
    cause="an average that is applied to a codebook that a gradient trains",
    applies=lambda subject: _revives(subject) and subject.traits.decay is None,
)
def check_updates_leave_live_entries(subject: QuantizerSubject) -> None:
    """Guards entries in use from updates.

    Fails it::

        codebook[usage < 0.5] = random_vectors  # half of the fair share is alive
    """
    entries = _entries(subject)
    module = _set(subject, entries, revive=True)
    rows = torch.arange(len(entries))
    for _ in range(20):
        subject.call(module, subject.from_vectors(_near(entries, rows)))
        module.update_()
    text = differ(subject.codebook(module), entries, rtol=0, atol=0)
    require(not text, f"20 updates in which each entry has its fair share: {text}")


@QUANTIZER.check(
    rule="an entry is dead when its average usage falls below the threshold, and then moves to a vector of the batch; "
    "live ones stay",
    cause="threshold or decay applied to counts instead of shares, live entries moved, or a revival that the average "
    "of the same update overwrites",
    applies=_revives,
)
def check_revival(subject: QuantizerSubject) -> None:
    """Guards when entries are revived, which, where to, and that it lasts; up to 256 entries also rarely used ones.

    Fails it::

        codebook[usage > threshold] = candidates
    """
    size = len(subject.codebook(subject.fresh()))
    revival = subject.fresh().revival
    if revival.threshold == 0 or size < 4:
        return
    due = 1 if revival.decay == 0 else math.floor(math.log(revival.threshold) / math.log(revival.decay)) + 1
    declared = subject.traits.revives_after
    require(declared in (None, due), f"by its settings, {due} updates without a vector make an entry dead")
    entries = _entries(subject)
    dead = torch.arange(size) % 4 == 3
    entries[dead] += 1e4
    module = _set(subject, entries, revive=True)
    rows = torch.arange(size)[~dead].repeat(3)
    for step in range(1, due + 1):
        z = _near(entries, rows, spread=0.5)
        if (
            step == due
        ):  # as many vectors off their entries as there are dead ones: live ones must not take their places
            z = torch.cat([z[: int(dead.sum())], subject.codebook(module)[rows].detach().to(z)])
        before = subject.codebook(module).clone()
        subject.call(module, subject.from_vectors(z))
        module.update_()
        moved = (subject.codebook(module) != before).any(dim=1) & dead
        require(step == due or not bool(moved.any()), f"{int(moved.sum())} entries revived in update {step}, not {due}")
    now = subject.codebook(module)
    require(bool(moved[dead].all()), f"{int(moved.sum())} of {int(dead.sum())} dead entries revived in update {due}")
    apart = torch.cdist(now[dead].double(), z.double()).amin(dim=1)
    require(float(apart.max()) < 1e-3, f"entries revived up to {float(apart.max()):.3g} away from the batch's vectors")
    different = _different(now[dead])
    require(different == int(dead.sum()), f"{int(dead.sum())} entries revived at {different} places")
    own = (now[~dead] - entries[~dead]).norm(dim=1)
    limit = 1e-6 if subject.traits.decay is None else max(1.0, _length(entries, spread=0.5))
    require(float(own.max()) <= limit, f"a live entry moved by {float(own.max()):.3g}")
    _check_after_revival(subject, module, dead)
    if size <= 256:  # it takes K / threshold vectors to be rare
        _check_rarely_used(subject, entries, due)
    if subject.traits.strict:
        if size <= 256:
            _check_rare_but_far(subject, entries, due)
            _check_dies_after_use(subject)
        _check_forgets_candidates(subject)
        _check_forgets_usage(subject, due)
        _check_draws_differ(subject)


@QUANTIZER.check(
    rule="the revival of a composite is that of the quantizers inside: None stops them all",
    cause="an attribute that is set on the whole and read by nobody",
    applies=lambda subject: subject.traits.strict and bool(_reviving_parts(subject.fresh())),
)
def check_revival_of_parts(subject: QuantizerSubject) -> None:
    """Guards the last tenth of a training, in which revival is switched off by one line.

    Fails it::

        quantizer.revival = None  # of a module that has no such property
    """
    module = subject.fresh()
    parts = _reviving_parts(module)
    other = dataclasses.replace(parts[0].revival, threshold=0.25)
    for settings in (other, None, other):
        module.revival = settings
        left = [part.revival for part in parts if part.revival != settings]
        require(not left, f"revival = {settings}: {len(left)} of {len(parts)} parts have {left[:1]}")
        require(module.revival == settings, f"revival = {settings}, but it reads {module.revival}")


def _length(entries: Tensor, *, spread: float) -> float:
    """Usual length of a vector of entries' width whose coordinates have this spread."""
    return spread * math.sqrt(entries.shape[1])


def _reviving_parts(module: Any) -> list[Any]:
    """Quantizers inside which revive their own entries."""
    inside = [part for part in module.modules() if part is not module and revives_itself(part)]
    return [part for part in inside if part.revival is not None]


def _check_rarely_used(subject: QuantizerSubject, entries: Tensor, due: int) -> None:
    """An entry that gets a vector in each update, but a tiny share of all, is dead too."""
    module = _set(subject, entries, revive=True)
    threshold, decay = module.revival.threshold, module.revival.decay
    often = torch.arange(1, len(entries)).repeat(math.ceil(4 / threshold))
    share = len(entries) / (1 + len(often))  # to which its usage falls, not to zero
    later = 0 if decay == 0 else math.log((threshold - share) / (1 - share) / threshold) / math.log(decay)
    for _ in range(due + math.ceil(later) + 2):
        rows = torch.cat([torch.zeros(1, dtype=torch.int64), often])
        before = subject.codebook(module)[0].clone()
        subject.call(module, subject.from_vectors(_near(entries, rows)))
        module.update_()
        if float((subject.codebook(module)[0] - before).norm()) > max(2.0, _length(entries, spread=0.5)):
            return
    require(False, f"an entry with one of {len(rows)} vectors in each update is not revived")


def _check_rare_but_far(subject: QuantizerSubject, entries: Tensor, due: int) -> None:
    """An entry with a tiny share of the vectors, but its fair one of all distances, stands for what is rare: it stays.

    The vectors lie around it in pairs, so that an average does not move it either.
    """
    entries = entries.clone()
    entries[0] = 1e3
    module = _set(subject, entries, revive=True)
    size, dim = entries.shape
    times = 4 * math.ceil(1 / module.revival.threshold)
    often, axis = torch.arange(1, size).repeat(times), torch.zeros(dim)
    axis[0] = 0.1 * times  # each of the two is as far as the vectors of another entry are together
    for update in range(due + 3):
        near = _near(entries, often, spread=0.0)
        near[:, 1 % dim] += 0.1 * torch.where(torch.arange(len(near)) < len(near) // 2, 1.0, -1.0)
        far = 1e3 * torch.ones(dim) + torch.stack([axis, -axis])
        subject.call(module, subject.from_vectors(torch.cat([near, far])))
        module.update_()
        moved = float((subject.codebook(module)[0] - entries[0]).norm())
        require(moved < 1.0, f"a rare entry with its fair share of the distances moved by {moved:.3g}, update {update}")


def _check_dies_after_use(subject: QuantizerSubject) -> None:
    """An entry that was in use for long, and is no more, is dead as soon as its average says so."""
    entries = _entries(subject)
    module = _set(subject, entries, revive=True)
    rows, threshold, decay = torch.arange(len(entries)), module.revival.threshold, module.revival.decay
    late = 1 if decay == 0 else math.ceil(math.log(threshold / 2) / math.log(decay)) + 1  # from twice the fair share
    for update in range(40 + late):
        used = rows if update < 40 else rows[1:]
        before = subject.codebook(module)[0].clone()
        subject.call(module, subject.from_vectors(_near(entries, used.repeat(4), spread=0.1)))
        module.update_()
    moved = float((subject.codebook(module)[0] - before).norm())
    dead = moved > 0 or float((before - entries[0]).norm()) > 0.5 * _length(entries, spread=1.0)
    require(dead, f"an entry that was used 40 times is not revived within {late} updates without a vector")


def _check_draws_differ(subject: QuantizerSubject) -> None:
    """Of one batch, another update draws other vectors: a fixed draw would see one corner of the images for ever."""
    entries = _entries(subject)
    batch, drawn = 1e3 + torch.randn(8 * len(entries), entries.shape[1]), set()
    for updates in range(3):
        module = _set(subject, entries, revive=True)
        module.revival = dataclasses.replace(module.revival, decay=0.0)  # an entry is dead after one update
        for step in range(updates + 1):
            subject.call(module, subject.from_vectors(entries if step < updates else batch))
            module.update_()
        places = torch.cdist(subject.codebook(module).double(), batch.double())
        drawn.add(tuple(sorted(places.argmin(dim=1)[places.amin(dim=1) < 1e-2].tolist())))
    require(len(drawn) > 1, f"the first, second and third update draw the same vectors: {drawn}")


def _check_forgets_usage(subject: QuantizerSubject, due: int) -> None:
    """No entry is dead for what happened before set_codebook_."""
    entries = _entries(subject)
    module = _set(subject, entries, revive=True)
    half = torch.arange(len(entries) // 2).repeat(8)
    for update in range(due):
        if update == due - 1:
            module.set_codebook_(entries)
        subject.call(module, subject.from_vectors(_near(entries, half)))
        module.update_()
    unused = slice(len(entries) // 2, None)
    moved = int((subject.codebook(module) != entries)[unused].any(dim=1).sum())
    require(due == 1 or moved == 0, f"{moved} entries are revived in the first update after set_codebook_")


def _check_forgets_candidates(subject: QuantizerSubject) -> None:
    """No entry moves to a vector that was counted before set_codebook_."""
    entries = _entries(subject)
    module = _set(subject, entries, revive=True)
    module.revival = dataclasses.replace(module.revival, decay=0.0)  # an entry is dead after one update
    subject.call(module, subject.from_vectors(entries + 1e4))
    module.set_codebook_(entries)
    near = _near(entries, torch.arange(len(entries) // 2).repeat(4))
    subject.call(module, subject.from_vectors(near))
    module.update_()
    now = subject.codebook(module)
    far = int((now.norm(dim=1) > 5e3).sum())
    require(far == 0, f"{far} entries revived at vectors that were counted before set_codebook_")
    apart = torch.cdist(now[len(entries) // 2 :].double(), torch.cat([near, entries]).double()).amin(dim=1)
    away = int((apart > 1e-2).sum())
    require(away == 0, f"after set_codebook_, {away} entries revived where no vector has been since")


def _check_after_revival(subject: QuantizerSubject, module: Any, dead: Tensor) -> None:
    """A revived entry starts anew: it is not dead in the next update, and follows its own vectors at once."""
    entries = subject.codebook(module).clone()
    other = clone(module)
    live = torch.arange(len(entries))[~dead].repeat(3)
    subject.call(other, subject.from_vectors(_near(entries, live, spread=0.01)))
    other.update_()
    moved = (subject.codebook(other) - entries).norm(dim=1)[dead]
    again = moved > 1.0
    if module.revival.decay > module.revival.threshold:
        require(not bool(again.any()), f"{int(again.sum())} entries were revived again in the next update")
    if subject.traits.decay is None:
        return
    rows = torch.arange(len(entries))
    shift = 0.01 * torch.randn_like(entries)
    subject.call(module, subject.from_vectors((entries + shift)[rows]))
    module.update_()
    apart = torch.cdist(entries.double(), entries.double()).fill_diagonal_(torch.inf).amin(dim=1)
    alone = dead & (apart > max(0.5, 1e-3 * float(entries.abs().max())))  # in a crowd, another one may be as near
    text = differ(subject.codebook(module)[alone], (entries + shift)[alone], rtol=0, atol=2e-3)
    require(not text, f"revived entries do not go to their first own vectors: {text}")
    require(bool(subject.codebook(module).isfinite().all()), "an entry is not finite")


@QUANTIZER.check(
    rule="revived entries prefer vectors that are far from their entry",
    cause="candidates drawn evenly, or in proportion to the inverse of the error",
    applies=lambda subject: _revives(subject) and (subject.traits.codebook_size or 0) <= 64,
)
def check_revival_prefers_errors(subject: QuantizerSubject) -> None:
    """Guards where dead entries go: of many vectors at their entries and a few far ones, the far ones win.

    Fails it::

        key = exponential * error  # must be exponential / error
    """
    size, dim = subject.codebook(subject.fresh()).shape
    entries = _entries(subject)
    entries[1:] += 1e4
    hits = 0
    for trial in range(4):
        module = _set(subject, entries, revive=True)
        for _ in range(400):
            vectors = entries[0] + 0.01 * torch.randn(16 * size, dim)
            vectors[torch.randperm(len(vectors))[: 2 * size]] += 3.0
            subject.call(module, subject.from_vectors(vectors))
            module.update_()
            now = subject.codebook(module)
            moved = (now[1:] != entries[1:]).any(dim=1)
            if bool(moved.any()):
                break
        else:
            require(False, f"no entry was revived in 400 updates (trial {trial})")
        far = (now[1:][moved] - entries[0]).norm(dim=1) > _length(entries, spread=1.0)
        hits += int(far.float().mean() > 0.5)
    require(hits >= 3, f"in {4 - hits} of 4 trials most revived entries went to vectors that had their entry already")
