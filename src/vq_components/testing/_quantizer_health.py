"""Checks of a quantizer that reports on its codebook."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._compare import differ, modes_of, require_modes, state_difference, state_of, use_of
from ._processes import can_run_two, in_two_processes
from ._quantizer_subject import QUANTIZER, QuantizerSubject, has_revival, has_setter
from ._report import refused, require


def _reports(subject: QuantizerSubject) -> bool:
    return subject.traits.strict and callable(getattr(subject.fresh(), "health", None))


@QUANTIZER.check(
    rule="health() changes nothing, in any mode and at any stage of life",
    cause="a training forward inside, or eval() that is not taken back part by part",
    applies=_reports,
)
def check_health_changes_nothing(subject: QuantizerSubject) -> None:
    """Guards a training against being looked at.

    Fails it::

        self.eval()
        ...
        self.train()  # and parts that were in evaluation are not any more
    """
    for stage, module in subject.at_stages().items():
        for training in (True, False):
            module.train(training)
            parts = list(module.modules())
            parts[-1].train(not training)  # a part may be in another mode
            modes, before, names = modes_of(module), state_of(module), [set(vars(part)) for part in parts]
            module.health(subject.input(24))
            more = {name for part, known in zip(parts, names, strict=True) for name in set(vars(part)) - known}
            require(not more, f"{stage}: attributes are left on its parts, {more}")
            left = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts)
            require(left == 0, f"{stage}: {left} hooks are left on its parts")
            require(refused(partial(module.health, torch.zeros(3)), Exception), "three zeros are taken")
            if subject.traits.mask:
                z = subject.input(24)
                mask = torch.ones(subject.positions(z)) > 0
                for batches, masks in (([z], [mask, mask]), ([z, z], [mask])):
                    where = f"{len(masks)} masks for {len(batches)} batches"
                    require(refused(partial(module.health, batches, masks), ValueError), f"{where}: no ValueError")
            text = state_difference(state_of(module), before)
            require(not text, f"{stage}: {text}")
            require_modes(module, modes, f"{stage}, after health()")


@QUANTIZER.check(
    rule="health() counts the indices of encode() over all batches of the window, without masked positions",
    cause="numbers of the last batch alone, or a mean of means",
    applies=_reports,
)
def check_health_counts(subject: QuantizerSubject) -> None:
    """Guards usage, perplexity and the number of dead entries, for each stage on its own.

    Fails it::

        usage = torch.stack([usage_of(batch) for batch in latents]).mean()
    """
    size = subject.traits.codebook_size or 1
    for training in (True, False):
        module = subject.started(training=training)
        window = [subject.input(40), 3.0 * subject.input(10)]
        masks = [torch.rand(subject.positions(z)) > 0.3 for z in window]
        for live in (None, masks):
            health = module.health(window, live)
            chosen = [subject.flat(module.encode(z)) for z in window]
            if live is not None:
                chosen = [each[mask.flatten()] for each, mask in zip(chosen, live, strict=True)]
            stages = torch.cat(chosen).flatten(1).T if subject.traits.index_shape else torch.cat(chosen)[None]
            counts = torch.stack([torch.bincount(stage, minlength=size) for stage in stages])
            expected = {"counts": counts, "dead": (counts == 0).sum(dim=1), **use_of(counts)}
            said = [reason for reason in health.reasons if "NaN" in reason]
            require(not said, f"{'no' if live is None else 'no live'} vector is NaN, and it is said: {said}")
            if live is not None:
                hidden = [mask.unsqueeze(subject.traits.channel_dim) for mask in live]
                spoilt = [torch.where(mask, z, torch.nan) for z, mask in zip(window, hidden, strict=True)]
                reasons = module.health(spoilt, live).reasons
                require(reasons == health.reasons, f"NaN in masked positions: {'; '.join(reasons)}")
            where = "with a mask" if live is not None else "without a mask"
            for name, value in expected.items():
                found = getattr(health, name).double()
                text = subject.about(found, value.double().reshape(found.shape))
                require(not text, f"{name}, {where}: {text}")


@QUANTIZER.check(
    rule="health() measures entries, latents and their distance, and says what is wrong",
    cause="squared norms for norms, or an error that is not in shares of the variance",
    applies=lambda subject: (
        _reports(subject)
        and has_setter(subject)
        and not subject.traits.composite
        and subject.traits.distance is not None
    ),
)
def check_health_measures(subject: QuantizerSubject) -> None:
    """Guards norms, error, duplicates and reasons by a brute force in float64.

    Fails it::

        error = (z - entries).square().mean()  # of which scale?
    """
    module = subject.started()
    with torch.no_grad():  # as after steps of an optimizer
        for parameter in module.parameters():
            parameter.mul_(1 + torch.rand_like(parameter))
    window = [subject.input(40), 3.0 * subject.input(10)]
    vectors, entries = torch.cat([subject.vectors(z) for z in window]).double(), subject.codebook(module).double()
    if subject.traits.distance == "cosine":
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    nearest = torch.cdist(vectors, entries).amin(dim=1)
    variance = (vectors - vectors.mean(dim=0)).square().sum(dim=1).mean()
    expected = {
        "code_norms": _low_mean_high(entries.norm(dim=1)),
        "latent_norms": _low_mean_high(vectors.norm(dim=1)),
        "error": nearest.square().mean() / variance,
        "duplicates": torch.tensor(len(entries) - len(torch.unique(entries, dim=0))),
    }
    health = module.health(window)
    for name, value in expected.items():
        text = subject.about(getattr(health, name).double(), value.double())
        require(not text, f"{name}: {text}")
    if len(entries) <= 256:  # it is a matter of words, and quadratic
        _check_reasons(subject, module, window)


@QUANTIZER.check(
    rule="health() of two processes is that of one with both windows",
    cause="a number that is not reduced over the processes, such as the largest norm",
    applies=lambda subject: _reports(subject) and can_run_two(),
)
def check_health_of_two_processes(subject: QuantizerSubject) -> None:
    """Guards data-parallel training against reports of one process's share.

    Fails it::

        norms = torch.stack([z.norm(dim=1).min(), z.norm(dim=1).max()])  # of this process alone
    """
    module = subject.started()
    windows = [[subject.input(40)], [3.0 * subject.input(10), 0.1 * subject.input(20)]]
    windows[1][1][0] = torch.nan
    expected = module.health(windows[0] + windows[1])
    for rank, found in enumerate(in_two_processes(lambda rank: module.health(windows[rank]))):
        for name, value in expected._asdict().items():
            same = value == getattr(found, name)
            text = "" if name == "reasons" and same else f"{getattr(found, name)}, not {value}"
            if name != "reasons":
                text = differ(getattr(found, name).double(), value.double(), rtol=1e-4, atol=1e-5)
            require(not text, f"{name} in process {rank}: {text}")


def _low_mean_high(norms: Tensor) -> Tensor:
    return torch.stack([norms.min(), norms.mean(), norms.max()])


def _check_reasons(subject: QuantizerSubject, module: Any, window: list[Tensor]) -> None:
    """Each trouble gives another sentence than a sound codebook has."""
    entries = subject.codebook(module)[torch.randperm(len(subject.codebook(module)))]
    sound = subject.from_vectors(entries.repeat(30, 1) + 0.01 * torch.randn(30 * len(entries), entries.shape[1]))
    usual = set(module.health(sound).reasons)
    module.set_codebook_(torch.cat([entries[:1], entries[:1], entries[2:]]))
    doubled = module.health(sound)
    require(int(doubled.duplicates) == 2, f"two equal entries are counted as {int(doubled.duplicates)} duplicates")
    bad = window[0].clone()
    bad[0] = torch.nan
    module.set_codebook_(entries)
    size, unlucky = len(entries), round(0.18 * len(entries))  # chance alone would leave exp(-2), 14 %
    few = subject.from_vectors(entries[unlucky:].repeat(3, 1)[: 2 * size])
    said = set(module.health(few).reasons) - usual
    if size >= 8:  # of fewer, one alone is more than chance would leave
        require(not said, f"{2 * size} vectors leave {unlucky} of {size} entries, as by chance, and it is said: {said}")
    module.set_codebook_(entries.index_fill(0, torch.tensor(0), 1e4))
    said = {reason for reason in module.health(sound).reasons if reason.startswith("all codes")}
    require(not said, f"one entry is far from all others, and it is said: {said}")
    if subject.traits.distance == "euclidean":
        module.set_codebook_(entries + 1e3)
        for vectors in (entries + 1e3, 1e3 * entries):
            equal = int(module.health(subject.from_vectors(vectors)).duplicates)
            require(equal == 0, f"entries that are all far from the origin: {equal} are counted as duplicates")
    module.set_codebook_(entries)
    one = subject.from_vectors(entries[:1].repeat(100, 1))
    for name, reasons in {
        "two entries are equal": doubled.reasons,
        "a latent is NaN": module.health(bad).reasons,
        "all latents have one entry": module.health(one).reasons,
    }.items():
        require(bool(set(reasons) - usual), f"{name}, and nothing is said of it: {reasons}")
    if size >= 8:
        _check_shares(subject, module, entries)
    if subject.traits.distance == "euclidean":
        _check_lengths(module, entries, sound)


def _check_lengths(module: Any, entries: Tensor, sound: Tensor) -> None:
    """What is said does not depend on the unit; it is said of entries that are too short, and of one that is NaN."""
    module.set_codebook_(entries)
    plain = module.health(sound)
    latents = float(plain.latent_norms[1])
    module.set_codebook_(1e4 * entries)
    said = module.health(1e4 * sound).reasons
    require(len(said) == len(plain.reasons), f"all 10,000 times as large: {said}, not {plain.reasons}")
    for share, short in ((20, True), (5, False)):
        module.set_codebook_(entries * latents / share / entries.norm(dim=1).max())
        reasons = module.health(sound).reasons
        said = [each for each in reasons if each.startswith("all codes within")]
        require(bool(said) == short, f"entries within 1/{share} of the latents' norm: {reasons}")
    with torch.no_grad():
        module.codebook[0] = torch.nan
    if not bool(module.codebook[0].isnan().any()):  # computed at each access
        return
    said = module.health(sound).reasons
    require(any("NaN or infinite" in each and ": 1." in each for each in said), f"an entry is NaN: {said}")


def _check_shares(subject: QuantizerSubject, module: Any, entries: Tensor) -> None:
    """What is said of the number of vectors, and of entries that stand for none, with what helps."""
    size = len(entries)
    said = module.health(subject.from_vectors(entries[: 3 * size // 4])).reasons
    require(any("cannot show" in each for each in said), f"{3 * size // 4} vectors for {size} entries: {said}")
    used = entries[math.ceil(0.3 * size) :].repeat(30, 1)
    said = module.health(subject.from_vectors(used)).reasons
    idle = [each for each in said if "stand for none" in each]
    require(len(idle) == 1, f"a third of {size} entries stands for none of {len(used)} vectors: {said}")
    if size >= 100:  # of which one is less than a hundredth
        common = torch.cat([entries.repeat(30, 1), entries[:1].repeat(40 * size, 1)])
        said = module.health(subject.from_vectors(common)).reasons
        half = any(each.startswith(f"1 of {size} entries stand for half") for each in said)
        require(half, f"one of {size} entries stands for more than half of {len(common)} vectors: {said}")
    told = "reviv" in idle[0]
    require(told == has_revival(subject), f"{'revival' if told else 'nothing'} is advised to: {idle[0]}")
