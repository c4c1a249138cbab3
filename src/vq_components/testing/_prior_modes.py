"""Checks of a prior's sampling in the middle of a training: what it leaves behind."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._compare import clone, modes_of, require_modes, state_difference, state_of
from ._prior_sampling import prompt_of, repeat
from ._prior_subject import PRIOR, PriorSubject, Values, can_generate
from ._report import require


@PRIOR.check(
    rule="sampling restores the mode, drops nothing out, changes no state, and draws from the generator it is given",
    cause="model.eval() without a way back, or forgotten; or a cache that is kept in the module",
    applies=can_generate,
    needs="the adapter's generate=, if it can be sampled from",
)
def check_sampling_restores(prior: PriorSubject) -> None:
    """Guards a training in which samples are drawn now and then.

    Fails it::

        model.eval()  # and training goes on without dropout
    """
    module, prompt, values = prior.excited(), prompt_of(prior, 3), prior.values(3)
    _set_modes(prior, module, prompt, values, [True])
    prior.logits(module, prior.tokens(3), values)  # masks and tables of positions are made when they are needed
    before, modes = state_of(module), modes_of(module)
    keys, random = list(module.state_dict()), torch.get_rng_state()
    trained = [p.requires_grad for p in module.parameters()]
    grads: list[bool] = []
    handle = next(module.children(), module).register_forward_hook(lambda *_: grads.append(torch.is_grad_enabled()))
    prior.generate(module, prompt, 1, values)
    handle.remove()
    require(not any(grads), "the model runs with autograd on: every token's graph is kept")
    greedy = [prior.generate(module, prompt, 2, values, temperature=0.0) for _ in range(2)]
    require_modes(module, modes, "after sampling")
    require(list(module.state_dict()) == keys, "the state has other keys")
    text = state_difference(state_of(module), before)
    require(not text, f"the state changed: {text}")
    require(trained == [p.requires_grad for p in module.parameters()], "parameters were left frozen")
    require(torch.equal(*greedy), "two greedy samples differ: dropout was on")
    require(not greedy[0].requires_grad and torch.is_grad_enabled(), "autograd was left on or off")
    if "progress" in prior.adapter.settings:
        seen: list[int] = []
        prior.generate(module, prompt, 2, values, progress=partial(_count_steps, seen))
        require(sum(seen) == 2, f"progress saw {sum(seen)} steps for two tokens")
        with contextlib.suppress(ZeroDivisionError):
            prior.generate(module, prompt, 2, values, progress=_break_off)
        require_modes(module, modes, "after an error")
        require(torch.is_grad_enabled(), "autograd was left off after an error")
    if "generator" not in prior.adapter.settings:
        return
    torch.set_rng_state(random)
    drawn = [
        prior.generate(module, prompt, 2, values, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    ]
    require(torch.equal(torch.get_rng_state(), random), "the global random state moved though a generator was given")
    require(torch.equal(drawn[0], drawn[1]), "one seed gives two different samples")
    many = [
        prior.generate(
            module, prompt[:1].expand(50, -1), 2, repeat(values, 50), generator=torch.Generator().manual_seed(seed)
        )
        for seed in (5, 6)
    ]
    require(not torch.equal(*many), "two seeds give the same 50 samples")


def _count_steps(seen: list[int], steps: Iterable[Any]) -> Iterator[Any]:
    for step in steps:
        seen.append(1)
        yield step


def _break_off(steps: Iterable[Any]) -> Iterator[Any]:
    yield from (step // 0 for step in steps)


def _set_modes(prior: PriorSubject, module: Any, prompt: Tensor, values: Values, modes: list[bool]) -> None:
    """These modes in turn, part by part; evaluation in all if it refuses to be sampled otherwise."""
    for part, training in zip(module.modules(), itertools.cycle(modes)):
        part.training = training
    if prior.traits.strict:
        return
    try:
        prior.generate(clone(module), prompt, 1, values)
    except Exception:
        module.eval()


@PRIOR.check(
    rule="each part is in the mode that it had before sampling, also where parts had different ones",
    cause="self.train(was_training) at the end: a part that had been frozen by eval() drops out again",
    applies=can_generate,
    needs="the adapter's generate=, if it can be sampled from",
)
def check_sampling_restores_parts(prior: PriorSubject) -> None:
    """Guards parts that are kept in evaluation while others are trained.

    Fails it::

        was = self.training
        self.eval()
        ...
        self.train(was)
    """
    module, prompt, values = prior.excited(), prompt_of(prior, 3), prior.values(3)
    _set_modes(prior, module, prompt, values, [True, False, True])
    modes = modes_of(module)
    prior.generate(module, prompt, 2, values, temperature=0.0)
    require_modes(module, modes, "some parts were in training and some in evaluation mode; after sampling")
    if "progress" in prior.adapter.settings:
        with contextlib.suppress(ZeroDivisionError):
            prior.generate(module, prompt, 2, values, progress=_break_off)
        require_modes(module, modes, "after an error")
