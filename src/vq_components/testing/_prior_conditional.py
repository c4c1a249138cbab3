"""Checks of a prior with conditions: the sequence that its transformer reads, the noise of training."""

from typing import Any

import torch
from torch import Tensor

from ._compare import gap
from ._prior_subject import PRIOR, PriorSubject, Values
from ._report import require


def is_own(subject: PriorSubject) -> bool:
    module = subject.fresh()
    return all(hasattr(module, name) for name in ("gpt", "image_vocab", "pkeep", "condition_dropout", "offset"))


def _read(prior: PriorSubject, module: Any, tokens: Tensor, values: Values) -> Tensor:
    """The sequence that the transformer was called with."""
    seen: list[Tensor] = []
    handle = module.gpt.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        prior.logits(module, tokens, values)
    finally:
        handle.remove()
    return seen[-1]


def _value_tokens(condition: Any, value: Tensor | None, batch: int) -> Tensor:
    """Tokens of one condition of the known classes, before its offset."""
    name = type(condition).__name__
    if value is None:
        return torch.zeros(batch, 1, dtype=torch.int64)
    if name == "Coordinates":
        bins = int(condition.bins)
        return (value.double() * bins).floor().long().clamp(max=bins - 1)
    return torch.as_tensor(value).reshape(batch, -1).long()


def _prefix(module: Any, values: Values, batch: int, *, dropped: bool) -> Tensor:
    """Tokens of all conditions, as the class documents them."""
    iterator, parts = iter(values), []
    first = module.image_vocab if module.offset else 0
    total = module.image_vocab + sum(c.vocab_size for c in module.conditions)
    nothing = total if module.offset else max([module.image_vocab, *(c.vocab_size for c in module.conditions)])
    for condition in module.conditions:
        value = next(iterator) if condition.takes_value else None
        part = _value_tokens(condition, value, batch) + first
        if dropped and condition.takes_value:
            part = torch.full_like(part, nothing)
        parts.append(part)
        first += condition.vocab_size if module.offset else 0
    return torch.cat(parts, dim=1)


@PRIOR.check(
    rule="the transformer reads the conditions' tokens, each in its own range, and all of the image's but the last",
    cause="an offset that is missing, or a sequence that is shifted by one",
    applies=is_own,
)
def check_conditional_sequence(prior: PriorSubject) -> None:
    """Guards which token stands for which value of which condition.

    Fails it::

        prefix = torch.cat([condition.encode(value) for ...], dim=1)  # class 3 and image token 3 are the same
    """
    module, tokens, values = prior.excited(), prior.tokens(4), prior.values(4)
    expected = torch.cat([_prefix(module, values, 4, dropped=False), tokens[:, :-1]], dim=1)
    text = gap(_read(prior, module, tokens, values), expected)
    require(not text, f"the transformer's sequence: {text}")
    logits = module.gpt(expected)[:, -tokens.shape[1] :, : module.image_vocab]
    text = prior.differ(prior.logits(module, tokens, values), logits)
    require(not text, f"logits, compared with the last ones of the transformer: {text}")


@PRIOR.check(
    rule="training keeps a share pkeep of the input tokens, replaces the others at random, and drops the conditions of "
    "a share condition_dropout of the images",
    cause="1 - p where p is meant, targets that are replaced too, or noise in evaluation",
    applies=is_own,
)
def check_conditional_noise(prior: PriorSubject) -> None:
    """Guards what training adds, by counting, for several shares.

    Fails it::

        kept = torch.rand(tokens.shape) > pkeep
    """
    module, batch = prior.excited().train(), 400
    tokens, values = prior.tokens(batch), prior.values(batch)
    given, free = (_prefix(module, values, batch, dropped=dropped) for dropped in (False, True))
    can_drop = module.condition_dropout > 0
    for pkeep, dropout in ((1.0, 0.0), (0.7, 0.0), (0.2, 0.25), (1.0, 1.0), (0.0, 0.0)):
        module.pkeep = pkeep
        if can_drop:
            module.condition_dropout = dropout
        read = _read(prior, module, tokens, values)
        prefix, inputs = read[:, : given.shape[1]], read[:, given.shape[1] :]
        kept = float((inputs == tokens[:, :-1]).double().mean())
        expected = pkeep + (1 - pkeep) / module.image_vocab
        require(
            abs(kept - expected) < 0.05, f"pkeep={pkeep}: {kept:.3f} of the tokens are as given, not {expected:.3f}"
        )
        alike = (inputs == tokens[:, :-1])[:, :2].double()
        if alike.shape[1] == 2 and 0 < pkeep < 1:
            both = float(alike.prod(dim=1).mean())
            require(abs(both - expected**2) < 0.1, f"pkeep={pkeep}: {both:.3f} of neighbours are both as given")
        require(int(inputs.min()) >= 0 and int(inputs.max()) < module.image_vocab, "a replacement is no image token")
        if pkeep == 0:
            share = torch.bincount(inputs.flatten(), minlength=module.image_vocab) * module.image_vocab / inputs.numel()
            rare = f"replacements take tokens with {float(share.min()):.2f} to {float(share.max()):.2f} of a fair share"
            require(bool(((share > 0.7) & (share < 1.3)).all()), rare)
        whole, none = (prefix == given).all(dim=1), (prefix == free).all(dim=1)
        require(bool((whole | none).all()), "conditions are dropped one by one, or in part")
        if can_drop and not torch.equal(given, free):
            share = float((~whole).double().mean())
            require(abs(share - dropout) < 0.08, f"condition_dropout={dropout}: {share:.3f} of the images have none")
    module.pkeep = 0.5
    answer = module(tokens, values)
    wanted = -answer.logits.log_softmax(dim=2).gather(2, tokens[:, :, None]).mean()
    text = prior.differ(answer.loss, wanted)
    require(not text, f"in training, the loss is not that of the given tokens: {text}")
    read = _read(prior, module.eval(), tokens, values)[:, given.shape[1] :]
    require(torch.equal(read, tokens[:, :-1]), "an evaluation replaces tokens")
