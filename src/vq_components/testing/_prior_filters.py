"""Checks of how logits become tokens, at a transformer whose logits are the same whatever it reads."""

import unittest.mock
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._compare import gap
from ._prior_sampling import check_frequencies, filtered
from ._prior_subject import PRIOR, PriorSubject, can_generate, inner, takes_settings
from ._report import refused, require, require_refused

_SAMPLES = 2400


def _can_be_fixed(subject: PriorSubject) -> bool:
    return can_generate(subject) and subject.transformer is not None


def _fixed(prior: PriorSubject, logits: Tensor) -> Any:
    """A copy with these logits ``(V,)`` at every position: the last normalization gives a constant for the head."""
    module = prior.fresh().eval()
    gpt = inner(module)
    with torch.no_grad():
        gpt.ln_f.weight.zero_()
        gpt.ln_f.bias.zero_()[0] = 1.0
        gpt.head.weight.zero_()[: len(logits), 0] = logits
        gpt.head.weight[len(logits) :, 0] = logits.max() + 5  # tokens of conditions, which must never come out
    return module


def _draw(prior: PriorSubject, module: Any, settings: dict[str, Any], count: int = _SAMPLES) -> Tensor:
    """As many tokens, of several positions, which all have the same logits."""
    new = min(prior.traits.length - max(prior.shortest, 1), 8)
    return _draw_rows(prior, module, settings, -(-count // new), new).flatten()


def _draw_rows(prior: PriorSubject, module: Any, settings: dict[str, Any], batch: int, new: int) -> Tensor:
    """New tokens ``(batch, new)``."""
    prompt = prior.tokens(batch, max(prior.shortest, 1))
    return prior.generate(module, prompt, new, prior.values(batch), **settings)[:, -new:]


def _logits(size: int) -> Tensor:
    """Probabilities 1 : 1/2 : 1/3 ..., in a mixed order; the largest logit is 2."""
    return 2.0 - (1.0 + torch.randperm(size)).log()


@PRIOR.check(
    rule="settings at their ends do what their definition says: everything, or the likeliest token alone",
    cause="a comparison that is strict, a filter that is left out at 0 or 1, or logits that overflow",
    applies=_can_be_fixed,
)
def check_sampling_extremes(prior: PriorSubject) -> None:
    """Guards top_k of 1 and beyond the vocabulary, shares near 0 and 1, and temperatures near 0 and infinity.

    Fails it::

        logits = logits / temperature  # 1e-40: infinite, and then NaN
    """
    size = prior.traits.vocab_size
    logits = _logits(size)
    module, best = _fixed(prior, logits), int(logits.argmax())
    ends: list[dict[str, Any]] = [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 0.01}]
    if prior.traits.strict:
        ends += [{"temperature": t} for t in (0.0, 1e-10, 1e-35, 1e-40)]
        ends += [{"top_k": 1, "temperature": 1e6}, {"min_p": 1.0, "top_p": 1.0}]
    for settings in ends:
        if takes_settings(prior, settings):
            tokens = _draw(prior, module, settings, 60)
            require(bool((tokens == best).all()), f"{settings}: {sorted(set(tokens.tolist()))} instead of {best} alone")
    wide: list[dict[str, Any]] = [{}, {"top_k": size}, {"top_p": 1.0}, {"min_p": 0.0}, {"top_k": size + 7}]
    for settings in wide:
        if takes_settings(prior, settings):
            check_frequencies(_draw(prior, module, settings), filtered(logits, {}), f"generate({settings})")
    for scale in (1e-5, 1e3) if takes_settings(prior, {"temperature": 1.0}) else ():
        tokens = _draw(prior, _fixed(prior, logits * scale), {"temperature": scale})
        check_frequencies(tokens, filtered(logits, {}), f"logits and temperature, both times {scale:g}")
    for temperature in (1e6, 1e35, 1e300) if prior.traits.strict else ():
        tokens = _draw(prior, module, {"temperature": temperature})
        check_frequencies(tokens, torch.full((size,), 1 / size).double(), f"generate(temperature={temperature})")


@PRIOR.check(
    rule="filters apply one after the other, each to the renormalized rest: temperature, top_k, top_p, min_p",
    cause="a filter that sees the probabilities from before the others, or an order that is not the documented one",
    applies=_can_be_fixed,
)
def check_sampling_filter_order(prior: PriorSubject) -> None:
    """Guards settings together, at values where the order decides.

    Fails it::

        probability = logits.softmax(dim=-1)  # once, before top_k, and used for top_p as well
    """
    size = prior.traits.vocab_size
    logits = _logits(size)
    module = _fixed(prior, logits)
    allowed = torch.ones(size, dtype=torch.bool)
    allowed[logits.argmax()] = False
    trials: list[dict[str, Any]] = [
        {"top_k": 3, "top_p": 0.8},
        {"temperature": 0.5, "top_p": 0.7},
        {"temperature": 2.0, "min_p": 0.45},
        {"top_k": 4, "top_p": 0.6, "min_p": 0.4},
        {"temperature": 0.6, "min_p": 0.3, "top_p": 0.75},
        {"allowed_tokens": allowed, "top_k": 2},
        {"allowed_tokens": allowed, "top_p": 0.5},
        {"allowed_tokens": allowed, "min_p": 0.7},
        {"allowed_tokens": allowed, "temperature": 0.0},
    ]
    for settings in trials:
        if takes_settings(prior, settings):
            plain = {name: value for name, value in settings.items() if name != "temperature"}
            plain["temperature"] = max(settings.get("temperature", 1.0), 1e-3)
            shown = ", ".join(f"{name}={'...' if isinstance(v, Tensor) else v}" for name, v in settings.items())
            check_frequencies(_draw(prior, module, settings), filtered(logits, plain), f"generate({shown})")


@PRIOR.check(
    rule="tokens that are equally likely are kept or left out together by top_k and min_p, and allowed row by row",
    cause="topk() that takes any of several, or a comparison that leaves out what is equal to the limit",
    applies=lambda subject: subject.traits.strict and _can_be_fixed(subject),
)
def check_sampling_ties(prior: PriorSubject) -> None:
    """Guards ties, logits so large that their exponential overflows, and allowed tokens of each sequence.

    Fails it::

        kept = torch.zeros_like(logits).scatter(-1, logits.topk(k).indices, 1.0)  # one of two equal tokens
    """
    size = prior.traits.vocab_size
    logits = torch.zeros(size)
    logits[[1, 4, 6]] = 1.5
    for scale in (1.0, 2000.0):
        module, three = _fixed(prior, logits * scale), torch.zeros(size).double()
        three[[1, 4, 6]] = 1 / 3
        for settings in ({"top_k": 1}, {"top_k": 2}, {"top_k": 3}, {"min_p": 1.0}):
            check_frequencies(_draw(prior, module, settings), three, f"three tokens of equal logits, {settings}")
        if scale == 1:
            settings = {"top_k": 4, "temperature": 0.8}
            check_frequencies(_draw(prior, module, settings), filtered(logits, settings), f"{settings}")
    four = torch.full((size,), -300.0)
    four[:4] = 1.0
    for share, wanted in ((0.25, 1), (0.3, 2), (0.5, 2), (0.75, 3), (1.0, 4)):
        kept = len(set(_draw(prior, _fixed(prior, four), {"top_p": share}, 300).tolist()))
        require(kept == wanted, f"top_p={share} keeps {kept} of four tokens of a quarter each, not {wanted}")
    if not takes_settings(prior, {"allowed_tokens": None}):
        return
    allowed = torch.stack([torch.arange(size) % 2 == 0, torch.arange(size) % 2 == 1]).repeat(300, 1)
    tokens = _draw_rows(prior, _fixed(prior, logits), {"allowed_tokens": allowed}, len(allowed), 2)
    for row in (0, 1):
        where = f"sequences that may have the tokens {allowed[row].nonzero()[:, 0].tolist()}"
        check_frequencies(tokens[row::2].flatten(), filtered(logits, {"allowed_tokens": allowed[row]}), where)


@PRIOR.check(
    rule="a number in [0, 1) for each position, drawn from the generator, becomes the token where the sum passes it",
    cause="numbers drawn in another order or shape, or a cumulative sum that starts a token late",
    applies=lambda subject: subject.traits.strict and _can_be_fixed(subject),
)
def check_sampling_inverse(prior: PriorSubject) -> None:
    """Guards that samples are the same from version to version: one number for each sequence and position.

    Fails it::

        token = torch.multinomial(probability, 1, generator=generator)
    """
    logits = _logits(prior.traits.vocab_size).bfloat16()
    new = min(prior.traits.length - max(prior.shortest, 1), 4)
    for batch, dtype in ((1, torch.float32), (60, torch.float32), (60, torch.bfloat16)):
        module = _fixed(prior, logits.float()).to(dtype)
        uniform = torch.rand(batch, new, generator=torch.Generator().manual_seed(11)).double()
        for settings in ({}, {"top_k": 3}, {"temperature": 3.0}):
            cumulative = filtered(logits, settings).cumsum(dim=0)
            near = ((uniform[..., None] - cumulative).abs() < 1e-5).any(dim=-1)
            expected = (cumulative <= uniform[..., None]).sum(dim=-1)
            seed = torch.Generator().manual_seed(11)
            tokens = _draw_rows(prior, module, {**settings, "generator": seed}, batch, new)
            text = gap(tokens[~near], expected[~near])
            require(not text, f"{batch} sequences, a model in {dtype}, {settings}: {text}")


@PRIOR.check(
    rule="a token that is ruled out never comes out, not even at the ends of the random numbers' range",
    cause="a comparison that is strict at 0, or a cumulative sum that rounding leaves short of 1",
    applies=lambda subject: can_generate(subject) and "allowed_tokens" in subject.adapter.settings,
)
def check_sampling_ends(prior: PriorSubject) -> None:
    """Guards the first and the last possible token, with ``torch.rand`` replaced by its least and largest values.

    Fails it::

        token = (cumulative < uniform).sum(dim=-1)  # 0 for a uniform of 0, even if token 0 is ruled out
    """
    module, batch, size = prior.excited(), 300, prior.traits.vocab_size
    allowed = (torch.arange(size) > 1) & (torch.arange(size) < size - 2)
    prompt, values = prior.tokens(batch, max(prior.shortest, 1)), prior.values(batch)
    for number in (0.0, 1 - 2**-24):

        def ends(*shape: Any, number: float = number, **_: Any) -> Tensor:
            return torch.full(shape[0] if isinstance(shape[0], (tuple, list, torch.Size)) else shape, number)

        cases: list[dict[str, Any]] = [{}, {"top_k": 2}, {"min_p": 0.2}]
        for settings in (case for case in cases if takes_settings(prior, case)):
            with unittest.mock.patch.object(torch, "rand", ends):
                tokens = prior.generate(module, prompt, 1, values, allowed_tokens=allowed, **settings)[:, -1]
            wrong = tokens[~allowed[tokens]]
            where = f"random numbers of {number:.8g}, {settings}"
            require(len(wrong) == 0, f"{where}: {len(wrong)} of {batch} tokens should be ruled out")


@PRIOR.check(
    rule="settings that mean nothing are refused before the model runs",
    cause="a range that is not looked at, so that every token is ruled out or none",
    applies=lambda subject: subject.traits.strict and can_generate(subject),
)
def check_sampling_refuses(prior: PriorSubject) -> None:
    """Guards against settings out of range, of the wrong type, or for another model, and against NaN.

    Fails it::

        kept = logits.topk(top_k).values  # top_k of 0 keeps nothing
    """
    module, size = prior.excited(), prior.traits.vocab_size
    length = max(prior.shortest, 1)
    prompt, values = prior.tokens(2, length), prior.values(2)
    call = partial(prior.generate, module, prompt, 1, values)
    nan, none = float("nan"), torch.zeros(size, dtype=torch.bool)
    first = torch.arange(size) == 0
    wrong: list[dict[str, Any]] = [{"temperature": t} for t in (-1.0, -1e-9, nan)]
    wrong += [{"top_k": 0}, {"top_k": -1}, {"min_p": -0.1}, {"min_p": 1.1}, {"min_p": nan}]
    wrong += [{"top_p": p} for p in (0.0, -0.5, 1.5, nan)]
    wrong += [{"allowed_tokens": allowed} for allowed in (none, torch.stack([first, none]), first.long(), first[1:])]
    wrong += [{"allowed_tokens": first.expand(3, -1)}, {"guidance": nan}, {"guidance": float("inf")}]
    wrong += [{"generator": 3}, {"progress": 3}] + ([] if prior.traits.guided else [{"guidance": 2.0}])
    for settings in wrong:
        require(refused(partial(call, **settings), ValueError, TypeError), f"{settings} is taken")
    rest = prior.traits.length - length
    others = {
        "a token too many": partial(prior.generate, module, prompt, rest + 1, values),
        "fewer than no tokens": partial(prior.generate, module, prompt, -1, values),
        "a prompt with a token beyond the vocabulary": partial(prior.generate, module, prompt + size, 1, values),
        "a prompt of floating-point numbers": partial(prior.generate, module, prompt.float(), 1, values),
        "a prompt in one dimension": partial(prior.generate, module, prompt[0], 1, values),
        "a value too many": partial(prior.generate, module, prompt, 1, (*values, torch.zeros(2).long())),
        "another batch size": partial(call, batch_size=3),
    }
    if hasattr(module, "image_vocab"):
        others["embeddings before conditions"] = partial(call, embeddings=torch.zeros(2, 1, 16))
    else:
        others["no first token"] = partial(prior.generate, module, prompt[:, :0], 1, values)
        others["no first token or embedding"] = partial(
            prior.generate, module, prompt[:, :0], 1, values, embeddings=torch.zeros(2, 0, 16)
        )
    require_refused(others)
    text = gap(prior.generate(module, prompt, 0, values), prompt)
    require(not text, f"no new tokens, compared with the prompt: {text}")
    _one_is_nan(prior, module, prompt, values)


def _one_is_nan(prior: PriorSubject, module: Any, prompt: Tensor, values: tuple[Tensor, ...]) -> None:
    gpt = inner(module)
    with torch.no_grad():
        gpt.head.weight[0] = torch.nan
    call = partial(prior.generate, module, prompt, 1, values)
    require(refused(call, ValueError), "logits of which one is NaN are sampled from")
