"""Checks of the ways to call a sampler: without a prompt, by the number of sequences, and of a compiled prior."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._compare import gap
from ._prior_conditional import is_own
from ._prior_subject import PRIOR, PriorSubject, can_generate
from ._report import refused, require


def _seed() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@PRIOR.check(
    rule="without a prompt, images start from their conditions; the number of sequences comes from whatever tells it",
    cause="a batch of one, or a first token that is not sampled",
    applies=lambda subject: subject.traits.strict and can_generate(subject),
)
def check_sampling_without_prompt(prior: PriorSubject) -> None:
    """Guards whole images: no prompt is an empty one, and batch_size, conditions and embeddings agree on the batch.

    Fails it::

        prompt = torch.zeros(1, 0, dtype=torch.int64) if prompt is None else prompt
    """
    module: Any = prior.excited()
    draw: Any = prior.adapter.generate
    values, new = prior.values(3), min(prior.traits.length, 4)
    if is_own(prior):
        empty = draw(module, torch.zeros(3, 0, dtype=torch.int64), new, values, {"generator": _seed()})
        ways: dict[str, dict[str, Any]] = {"batch_size=3": {"batch_size": 3}}
        if values:
            ways["conditions alone"] = {}
        more: Callable[[], object] = partial(draw, module, None, 1, (), {})
    else:
        front = torch.randn(3, 2, module.pos_emb.shape[2])
        prompt = torch.zeros(3, 0, dtype=torch.int64)
        empty = draw(module, prompt, new, values, {"embeddings": front, "generator": _seed()})
        ways = {"embeddings alone": {"embeddings": front}}
        ways["embeddings and batch_size=3"] = {"embeddings": front, "batch_size": 3}
        more = partial(draw, module, None, 1, (), {"embeddings": front, "batch_size": 2})
    require(tuple(empty.shape) == (3, new), f"an empty prompt and {new} tokens: shape {tuple(empty.shape)}")
    require(empty.dtype == torch.int64, f"sampled tokens are {empty.dtype}")
    for what, settings in ways.items():
        found = draw(module, None, new, values, {**settings, "generator": _seed()})
        text = gap(found, empty)
        require(not text, f"{what}, compared with an empty prompt: {text}")
    require(refused(more, ValueError, TypeError), "a batch that nothing tells, or that is told twice, is taken")
    if len(empty) > 1:
        require(not bool((empty == empty[:1]).all()), "all images are the same")


@PRIOR.check(
    rule="a compiled prior, or one whose transformer is compiled, is sampled like the prior itself; a wrapper of "
    "another kind is refused",
    cause="a class that is compared before the wrapper is taken off",
    applies=lambda subject: subject.traits.strict and can_generate(subject),
)
def check_sampling_of_compiled(prior: PriorSubject) -> None:
    """Guards ``torch.compile`` in a training script, whose samples are drawn from the compiled module.

    Fails it::

        if not isinstance(model, Prior):
            raise TypeError  # a compiled one is an OptimizedModule
    """
    module: Any = prior.excited()
    draw: Any = prior.adapter.generate
    length = max(prior.shortest, 1)
    prompt, values = prior.tokens(2, length), prior.values(2)
    new = min(prior.traits.length - length, 3)

    def sample(each: Any) -> Tensor:
        tokens: Tensor = draw(each, prompt, new, values, {"generator": _seed()})
        return tokens

    plain = sample(module)
    compiled: Any = torch.compile(module, backend="eager")
    text = gap(sample(compiled), plain)
    require(not text, f"a compiled prior: {text}")
    require(refused(partial(sample, nn.Sequential(module)), TypeError), "a Sequential around the prior is taken")
    if hasattr(module, "gpt"):
        module.gpt = torch.compile(module.gpt, backend="eager")
        text = gap(sample(module), plain)
        require(not text, f"a prior whose transformer is compiled: {text}")
