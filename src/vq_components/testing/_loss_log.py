"""Checks of what a VQ-GAN loss logs: the original's names, and memory of its own."""

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._compare import drawn, gap
from ._loss_adapters import Answer, Scene
from ._loss_subject import LOSS, LossSubject
from ._report import refused, require

_GENERATOR = ("total_loss", "quant_loss", "nll_loss", "rec_loss", "p_loss", "d_weight", "disc_factor", "g_loss")
_DISCRIMINATOR = ("disc_loss", "logits_real", "logits_fake")


def _takes_split(subject: LossSubject) -> bool:
    forward = subject.fresh().forward
    return subject.adapter.log is not None and "split" in inspect.signature(forward).parameters


def _has_log(subject: LossSubject) -> bool:
    return subject.declares_all and _takes_split(subject)


def _called(subject: LossSubject, module: Any, scene: Scene, step: int, player: Any, split: str) -> Answer:
    log: Any = subject.adapter.log
    with drawn(1):
        loss, named = log(module, scene, step, player, split)
    return loss, named


@LOSS.check(
    rule="the log has the original's names behind the split, and the same detached values for every split",
    cause="a name with the split written out, or something that is left out in validation",
    applies=_has_log,
)
def check_log_splits(loss: LossSubject) -> None:
    """Guards the log of the original's call.

    Fails it::

        log = {"train/total_loss": total, ...}  # whatever split says
    """
    if loss.traits.strict:
        default = inspect.signature(loss.fresh().forward).parameters["split"].default
        require(default == "train", f"split is {default!r} unless told")
    for player, names in enumerate((_GENERATOR, _DISCRIMINATOR)):
        module, scene = loss.used(), loss.scene()
        for step in (loss.before(loss.traits.disc_start), loss.full):
            value, log = _called(loss, module, scene, step, player, "train")
            expected = {name.removeprefix("train/"): term.detach().clone() for name, term in log.items()}
            if loss.traits.strict:
                require(tuple(expected) == names, f"step {step}: it logs {', '.join(expected)}")
            for split in ("train", "val", "test", "a/b"):
                again, log = _called(loss, module, scene, step, player, split)
                wanted = [f"{split}/{name}" for name in expected]
                require(list(log) == wanted, f"split={split!r}: {', '.join(log)} instead of {', '.join(wanted)}")
                for name, term in expected.items():
                    found = log[f"{split}/{name}"]
                    require(not found.requires_grad, f"{split}/{name} has a graph")
                    require(not loss.differ(found, term), f"{split}/{name}: {loss.differ(found, term)}")
                require(not loss.differ(again.detach(), value.detach()), f"split={split!r} changes the loss")
    if loss.traits.strict:
        for other in (2, -1, None):
            call = partial(_called, loss, loss.fresh(), loss.scene(), loss.full, other, "train")
            require(refused(call, ValueError), f"optimizer_idx={other} is taken")


@LOSS.check(
    rule="what is logged are the parts of the loss: weighted where the original's are, unweighted where they are not",
    cause="a weight that is left out or applied twice, or one number under the name of another",
    applies=_has_log,
)
def check_log_values(loss: LossSubject) -> None:
    """Guards the curves that a training is judged by.

    Fails it::

        "p_loss": self.perceptual_weight * p_loss
    """
    module, scene = loss.used(), loss.scene()
    start, ramp = loss.traits.gen_start, loss.traits.gen_ramp
    for step in (loss.before(start), start, *([start + 1] if ramp > 2 else []), loss.full):
        parts = loss.expected_generator(module, scene, step)
        expected = {"total_loss": parts["loss"], "quant_loss": parts["quantizer"]}
        if loss.traits.strict:  # others may weight what they log as they like
            expected |= {
                "nll_loss": parts["reconstruction"],
                "rec_loss": parts["reconstruction"],
                "p_loss": parts["perceptual"],
                "d_weight": parts["adaptive_weight"] * (loss.traits.adversarial or 0.0),
                "disc_factor": torch.tensor(loss.factor_at(step)),
                "g_loss": parts["generator"],
            }
        _compare(loss, _called(loss, module, scene, step, 0, "val")[1], expected, f"step {step}")
    network = loss.adapter.network(module)
    parts = loss.expected_discriminator(network, scene)
    weighted = (loss.traits.factor or 0.0) * parts.pop("discriminator")
    if loss.traits.strict:
        parts["disc_loss"] = weighted
    _compare(loss, _called(loss, module, scene, loss.full, 1, "val")[1], parts, "discriminator")


def _compare(subject: LossSubject, log: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    for name, wanted in expected.items():
        found = log.get(f"val/{name}")
        if found is None:
            require(not subject.traits.strict, f"{where}: {name} is not logged")
            continue
        numbers = f"{float(found.detach()):.6g} instead of {float(wanted.detach()):.6g}"
        require(not subject.differ(found.reshape(()), wanted.detach()), f"{where}: {name} is {numbers}")


def _answers(subject: LossSubject, scene: Scene) -> Iterator[tuple[str, Answer]]:
    """What both players return, in both call forms, before the start, within the ramp and after it."""
    for step in (subject.traits.disc_start - 1, subject.traits.gen_start, subject.full):
        module = subject.used()
        for name, call in (("generator", subject.generator), ("discriminator", subject.discriminator)):
            yield f"{name}, step {step}", call(module, scene, step)
        for player in (0, 1) if _takes_split(subject) else ():
            yield f"log of player {player}, step {step}", _called(subject, module, scene, step, player, "val")


@LOSS.check(
    rule="every number that is returned has memory of its own and no graph: writing to one changes no other",
    cause="one zero for all that is not computed, or a term that is a view of the loss or of an argument",
    applies=lambda subject: subject.traits.strict,
)
def check_terms_are_apart(loss: LossSubject) -> None:
    """Guards sums over processes in place, and logs that are kept for long.

    Fails it::

        nothing = torch.zeros(())
        terms = {"generator": nothing, "adaptive_weight": nothing}
    """
    scene = loss.scene()
    for where, (value, terms) in _answers(loss, scene):
        for name, term in terms.items():
            require(term.grad_fn is None and not term.requires_grad, f"{where}: {name} has a graph")
        given = {"the quantizer's loss": scene.quantizer_loss, "the last layer": scene.last_layer}
        returned = {"the loss": value, **terms}
        for name in returned:
            before = {other: tensor.detach().clone() for other, tensor in {**returned, **given}.items()}
            returned[name].detach().add_(1.0)
            for other, tensor in {**returned, **given}.items():
                if other != name:
                    text = gap(tensor.detach(), before[other])
                    require(not text, f"{where}: writing to {name} changes {other}: {text}")
