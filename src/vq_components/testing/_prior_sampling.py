"""Checks of a prior's sampling: by its own logits, and laws of large numbers."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ._prior_subject import PRIOR, PriorSubject, Values, can_generate, takes_settings
from ._report import require

_SAMPLES = 4000


def filtered(logits: Tensor, settings: dict[str, Any]) -> Tensor:
    """Probabilities ``(V,)`` that settings leave, token by token in float64."""
    allowed = settings.get("allowed_tokens")
    logits = logits.double() / settings.get("temperature", 1.0)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    p = logits.softmax(dim=0)
    if settings.get("top_k") is not None:
        least = p.sort(descending=True).values[min(settings["top_k"], len(p)) - 1]
        p = torch.where(p >= least, p, 0.0)
        p = p / p.sum()
    if settings.get("top_p") is not None:
        kept, total = torch.zeros_like(p), 0.0
        for token in p.argsort(descending=True).tolist():
            if total >= settings["top_p"]:
                break
            kept[token] = p[token]
            total += float(p[token])
        p = kept / kept.sum()
    if settings.get("min_p") is not None:
        p = torch.where(p >= settings["min_p"] * p.max(), p, 0.0)
    return p / p.sum()


def check_frequencies(tokens: Tensor, probability: Tensor, where: str) -> None:
    """Raises unless tokens ``(N,)`` occur as often as they should, within five standard deviations and a few."""
    share = torch.bincount(tokens, minlength=len(probability)).double() / len(tokens)
    ruled_out = (probability == 0) & (share > 0)
    require(not bool(ruled_out.any()), f"{where}: tokens {ruled_out.nonzero()[:5, 0].tolist()} should be ruled out")
    few = 2 + math.log10(len(probability))  # of rare ones, one is sure to come several times if they are many
    limit = 5 * (probability * (1 - probability) / len(tokens)).sqrt() + few / len(tokens)
    far = ((share - probability).abs() - limit).argmax()
    numbers = f"token {int(far)} has a share of {float(share[far]):.4f} instead of {float(probability[far]):.4f}"
    require(bool(((share - probability).abs() <= limit).all()), f"{where}: {numbers}")


def repeat(values: Values, times: int) -> Values:
    """Values of the first row's conditions for ``times`` rows."""
    return tuple(value[:1].repeat(times, *[1] * (value.ndim - 1)) for value in values)


def prompt_of(prior: PriorSubject, batch: int, extra: int = 1) -> Tensor:
    """Random tokens to go on from, ``extra`` more than it needs."""
    return prior.tokens(batch, min(prior.shortest + extra, prior.traits.length - 2))


@PRIOR.check(
    rule="sampling goes on with the prompt, and the likeliest tokens are those of the logits without a cache",
    cause="a cache whose positions are off by one, or keys that are appended twice",
    applies=can_generate,
    needs="the adapter's generate=, if it can be sampled from",
)
def check_cached_equals_uncached(prior: PriorSubject) -> None:
    """Guards the cache, for few and many sequences and for prompts of any length, by a plain loop.

    Fails it::

        x = x + self.pos_emb[:, :1]  # for every new token
    """
    module = prior.excited()
    for batch in (1, 3, 6, 20):
        for extra in (0, 1, 3):
            length = prior.shortest + extra
            if length >= prior.traits.length:
                continue
            prompt, values = prior.tokens(batch, length), prior.values(batch)
            new = prior.traits.length - length
            tokens = prior.generate(module, prompt, new, values, temperature=0.0)
            where = f"{batch} sequences, prompt of {length}"
            require(tuple(tokens.shape) == (batch, length + new), f"{where}: shape {tuple(tokens.shape)}")
            require(torch.equal(tokens[:, :length], prompt), f"{where}: the prompt was changed")
            for t in range(length, length + new):
                logits = prior.next_logits(module, tokens[:, :t], values).detach()
                chosen = logits.gather(1, tokens[:, t : t + 1])[:, 0]
                behind = float((logits.amax(dim=1) - chosen).max())
                require(behind < 1e-3, f"{where}, token {t}: a token that is {behind:.3g} behind the likeliest")


@PRIOR.check(
    rule="sampled tokens have the probabilities of the logits, after temperature and filters",
    cause="logits multiplied by the temperature, a filter that keeps one too many or too few, or one that is ignored",
    applies=can_generate,
    needs="the adapter's generate=, if it can be sampled from",
)
def check_sampling_distribution(prior: PriorSubject) -> None:
    """Guards the distribution of the next token, for each setting and for settings together.

    Fails it::

        logits[logits < logits.topk(k + 1).values[..., -1:]] = -inf
    """
    module = prior.excited()
    prompt, values = prompt_of(prior, 1), repeat(prior.values(1), 1)
    logits = prior.next_logits(module, prompt, values)[0].detach()
    size = prior.traits.vocab_size
    allowed = torch.arange(size) % 2 == 1
    p = filtered(logits, {}).sort(descending=True).values
    # Between two sums, so that rounding cannot decide.
    middle = min(2, size - 2)
    nucleus = float(p[:middle].sum() + p[middle] / 2), float(p[0] / 2)
    trials: list[dict[str, Any]] = [{}, {"temperature": 0.5}, {"temperature": 2.0}]
    trials += [{"top_k": k} for k in (1, min(3, size), size - 1, size + 5)]
    trials += [{"top_p": share} for share in nucleus]
    trials += [{"min_p": float(p[middle : middle + 2].mean() / p[0])}, {"allowed_tokens": allowed}]
    trials += [{"temperature": 0.7, "top_k": 5, "top_p": 0.8}, {"top_k": 2, "allowed_tokens": allowed}]
    for settings in trials:
        if not takes_settings(prior, settings):
            continue
        many = prompt.expand(_SAMPLES, -1)
        tokens = prior.generate(module, many, 1, repeat(values, _SAMPLES), **settings)[:, -1]
        shown = ", ".join(f"{name}={'...' if isinstance(v, Tensor) else v}" for name, v in settings.items())
        check_frequencies(tokens, filtered(logits, settings), f"generate({shown})")


@PRIOR.check(
    rule="two tokens in a row have the joint probability of the logits",
    cause="one random number used for several positions, or a second token that does not see the first",
    applies=can_generate,
    needs="the adapter's generate=, if it can be sampled from",
)
def check_sampling_of_pairs(prior: PriorSubject) -> None:
    """Guards independence from position to position.

    Fails it::

        uniform = torch.rand(batch, 1).expand(batch, new)
    """
    module = prior.excited()
    prompt, values = prompt_of(prior, 1, extra=0), repeat(prior.values(1), 1)
    size = prior.traits.vocab_size
    settings = {"temperature": 0.8}
    first = filtered(prior.next_logits(module, prompt, values)[0].detach(), settings)
    every = torch.cat([prompt.expand(size, -1), torch.arange(size)[:, None]], dim=1)
    then = prior.next_logits(module, every, repeat(values, size)).detach()
    joint = torch.stack([first[token] * filtered(then[token], settings) for token in range(size)])
    many = prior.generate(module, prompt.expand(_SAMPLES, -1), 2, repeat(values, _SAMPLES), **settings)[:, -2:]
    check_frequencies(many[:, 0] * size + many[:, 1], joint.flatten(), "pairs, numbered first * vocab_size + second")


@PRIOR.check(
    rule="what is sampled for one prompt does not depend on the other prompts of its batch",
    cause="a filter that looks at the likeliest token of the whole batch, or one that keeps as many tokens for all",
    applies=lambda subject: can_generate(subject) and "generator" in subject.adapter.settings,
)
def check_sampling_batch_independence(prior: PriorSubject) -> None:
    """Guards that one seed gives one image, whatever is sampled beside it, where noise belongs to its position.

    Fails it::

        logits[p < min_p * p.max()] = -torch.inf  # must be p.amax(dim=-1, keepdim=True)
    """
    module, count = prior.excited(), 6
    prompts, values = prompt_of(prior, count), prior.values(count)

    def draw(rows: Tensor, settings: dict[str, Any]) -> Tensor:
        chosen, seed = tuple(value[rows] for value in values), torch.Generator().manual_seed(3)
        return prior.generate(module, prompts[rows], 3, chosen, generator=seed, **settings)

    cases: list[dict[str, Any]] = [{"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.5}, {"temperature": 0.5}]
    if prior.traits.guided:
        cases.append({"guidance": 3.0})
    for settings in (case for case in cases if takes_settings(prior, case)):
        together = draw(torch.arange(count), settings)
        for row in range(count):
            alike = draw(torch.full((count,), row), settings)[row]
            require(torch.equal(together[row], alike), f"{settings}: {together[row].tolist()}, alone {alike.tolist()}")


@PRIOR.check(
    rule="guidance w samples from free + w (given - free), logits without and with conditions",
    cause="a sign, w and w - 1, or the two halves of the batch swapped",
    applies=lambda subject: subject.traits.guided and can_generate(subject),
)
def check_guidance(prior: PriorSubject) -> None:
    """Guards classifier-free guidance: 0 ignores the conditions, 1 is without guidance, and all lies on one line.

    Fails it::

        logits = given + guidance * (given - free)
    """
    module = prior.excited()
    prompt, values = prompt_of(prior, 1), repeat(prior.values(1), 1)
    given = prior.next_logits(module, prompt, values)[0].detach()
    other = repeat(prior.values(1), 1)
    prior_free = _free_logits(prior, module, prompt, values)
    for weight in (0.0, 1.0, 2.5, -1.0):
        many = prompt.expand(_SAMPLES, -1)
        tokens = prior.generate(module, many, 1, repeat(values, _SAMPLES), guidance=weight)[:, -1]
        expected = filtered(prior_free + weight * (given - prior_free), {})
        check_frequencies(tokens, expected, f"generate(guidance={weight})")
    a, b = (prior.generate(module, prompt, 3, each, guidance=0.0, temperature=0.0) for each in (values, other))
    require(torch.equal(a, b), "guidance=0 depends on the conditions")
    start, several = prompt_of(prior, 6), prior.values(6)
    new = min(4, prior.traits.length - start.shape[1])
    at_once = prior.generate(module, start, new, several, guidance=2.5, temperature=0.0)
    for _ in range(new):
        start = prior.generate(module, start, 1, several, guidance=2.5, temperature=0.0)
    require(torch.equal(at_once, start), f"guided, {new} tokens at once are not those of one call after the other")


@contextlib.contextmanager
def without_conditions(module: Any) -> Iterator[None]:
    """The module in a training mode that drops every condition and nothing else."""
    mode, dropout, pkeep = module.training, module.condition_dropout, module.pkeep
    noise = [part for part in module.modules() if isinstance(part, torch.nn.Dropout) or hasattr(part, "attn_pdrop")]
    try:
        module.training, module.condition_dropout, module.pkeep = True, 1.0, 1.0
        for part in noise:
            part.eval()
        yield
    finally:
        module.training, module.condition_dropout, module.pkeep = mode, dropout, pkeep


def _free_logits(prior: PriorSubject, module: Any, prompt: Tensor, values: Values) -> Tensor:
    """Logits without conditions."""
    with without_conditions(module):
        return prior.next_logits(module, prompt, values)[0].detach()
