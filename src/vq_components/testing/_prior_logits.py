"""Checks of a prior: what its logits depend on, and what they are."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._compare import backward, gap, state_difference, state_of
from ._prior_subject import PRIOR, PriorSubject, Values
from ._report import fail, require


@PRIOR.check(
    rule="logits are (B, T, vocab_size) for every length, and finite",
    cause="logits of the last position only, or of the conditions too",
)
def check_logits_shape(prior: PriorSubject) -> None:
    """Guards the shape of logits for one token, some, and as many as fit.

    Fails it::

        return self.head(x[:, [-1]])  # in evaluation
    """
    for training in (True, False):
        module = prior.fresh().train(training)
        for length in {max(prior.traits.n_unmasked, 1), (prior.traits.length + 1) // 2, prior.traits.length}:
            logits = prior.logits(module, prior.tokens(3, length), prior.values(3))
            require(tuple(logits.shape) == (3, length, prior.traits.vocab_size), f"shape {tuple(logits.shape)}")
            require(bool(logits.isfinite().all()), "logits are not finite")


@PRIOR.check(
    rule="changing token j changes no logits of tokens up to it, and for most j those of the next; if strict, of all "
    "later ones",
    cause="a causal mask that is off by one, or missing where a cache or a prefix is used",
)
def check_causality(prior: PriorSubject) -> None:
    """Guards what is seen: exactly what came before, and among the first n_unmasked positions everything.

    Fails it::

        mask = torch.tril(torch.ones(T, T), diagonal=1)  # sees the token that it predicts
    """
    module, values = prior.excited(), prior.values(2)
    tokens = prior.tokens(2)
    base = prior.logits(module, tokens, values).detach()
    unseen = []
    for j in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[:, j] = (changed[:, j] + 1) % prior.traits.vocab_size
        change = (prior.logits(module, changed, values).detach() - base).abs()
        moved, largest = change.amax(dim=2).amin(dim=0), change.amax(dim=(0, 2))
        position = torch.arange(tokens.shape[1])
        sees = position >= j if prior.traits.predicts_next else position > j
        both = prior.traits.n_unmasked if prior.traits.predicts_next else 0
        sees = sees | ((position < both) & (j < both))
        leak = position[(largest > 1e-4) & ~sees].tolist()
        require(not leak, f"token {j} changes logits at {leak}")
        if not prior.traits.strict:  # how far back it looks is its own choice
            sees = sees & (position <= j + (0 if prior.traits.predicts_next else 1))
        blind = position[(moved < 1e-6) & sees].tolist()
        require(not (blind and prior.traits.strict), f"token {j} does not change logits at {blind}")
        unseen += [j] if blind else []
    # Rows of a grid may begin without a look at the end of the row above.
    require(len(unseen) <= tokens.shape[1] // 2, f"tokens {unseen} do not change the logits of the next")


@PRIOR.check(
    rule="logits of a sequence do not depend on the rest of the batch",
    cause="a mask or an embedding that is broadcast over the wrong dimension",
)
def check_prior_batch_independence(prior: PriorSubject) -> None:
    """Guards batched likelihoods.

    Fails it::

        x = x - x.mean(dim=0)
    """
    module, tokens, values = prior.excited(), prior.tokens(5), prior.values(5)
    together = prior.logits(module, tokens, values)
    for row in range(5):
        alone = prior.logits(module, tokens[row : row + 1], tuple(value[row : row + 1] for value in values))
        text = prior.differ(alone[0], together[row])
        require(not text, f"row {row}: {text}")


@PRIOR.check(
    rule="evaluation draws no random numbers, and training applies its dropout",
    cause="a dropout probability that is passed whatever the mode is",
)
def check_prior_modes(prior: PriorSubject) -> None:
    """Guards the modes: two evaluations agree, and trainings differ if there is any dropout.

    Fails it::

        F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_pdrop)
    """
    module, tokens, values = prior.excited(), prior.tokens(2), prior.values(2)
    first, second = (prior.logits(module, tokens, values) for _ in range(2))
    require(not gap(second, first), f"two evaluations: {gap(second, first)}")
    module.train()
    dropped = any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules())
    dropped |= any(getattr(part, "attn_pdrop", 0) > 0 for part in module.modules())
    dropped |= getattr(module, "pkeep", 1.0) < 1 or getattr(module, "condition_dropout", 0.0) == 1
    third, fourth = (prior.logits(module, tokens, values) for _ in range(2))
    differs = any(bool((each - first).abs().max() > 1e-4) for each in (third, fourth))
    if not prior.traits.strict:  # what drops may be a function of any name
        dropped |= bool(gap(fourth, third))
    if not (getattr(module, "condition_dropout", 0.0) > 0 and not dropped):
        require(differs == dropped, f"training {'differs from' if differs else 'equals'} evaluation")


@PRIOR.check(
    rule="each condition has an influence on all logits",
    cause="a condition that is embedded and cut off again, or replaced by a constant",
    applies=lambda subject: subject.traits.conditions is not None,
    needs="conditions=, if it takes some",
)
def check_conditions_used(prior: PriorSubject) -> None:
    """Guards the conditions, one by one.

    Fails it::

        sequence = tokens  # without torch.cat([prefix, tokens], dim=1)
    """
    module, tokens = prior.excited(), prior.tokens(3)
    values, others = prior.values(3), prior.values(3)
    base = prior.logits(module, tokens, values)
    for n in range(len(values)):
        other = others[n]
        while bool((other.reshape(3, -1) == values[n].reshape(3, -1)).all(dim=1).any()):
            other = prior.values(3)[n]
        changed = prior.logits(module, tokens, (*values[:n], other, *values[n + 1 :]))
        moved = (changed - base).abs().amax(dim=2)
        require(bool((moved > 1e-6).all()), f"condition {n} does not change the logits at {int((moved <= 1e-6).sum())}")


@PRIOR.check(
    rule="the loss is the mean negative log-likelihood of the tokens under the logits, which are normalized",
    cause="targets shifted by one, conditions counted as tokens, or a sum",
    applies=lambda subject: subject.adapter.loss is not None,
    needs="the adapter's loss=",
)
def check_prior_loss(prior: PriorSubject) -> None:
    """Guards the loss by the logits' own probabilities.

    Fails it::

        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())  # logits are of tokens, not next
    """
    module, tokens, values = prior.excited(), prior.tokens(4), prior.values(4)
    if prior.adapter.loss is None:
        return
    loss = prior.adapter.loss(module, tokens, values).detach()
    shift = 1 if prior.traits.predicts_next else 0
    probability = prior.logits(module, tokens, values).detach().double().log_softmax(dim=2)
    expected = -probability[:, : tokens.shape[1] - shift].gather(2, tokens[:, shift:, None]).mean()
    require(not prior.differ(loss, expected), f"the loss is {float(loss):.6g} instead of {float(expected):.6g}")
    if prior.traits.strict:
        bits = module(tokens, values).bits_per_token
        wanted = float(expected) / math.log(2)
        require(abs(float(bits) - wanted) < 1e-3 * wanted, f"bits per token {float(bits):.6g} instead of {wanted:.6g}")
        require(not bits.requires_grad, "bits per token require grad")


@PRIOR.check(
    rule="every parameter gets a gradient, a state_dict loads strictly, and a deep copy shares nothing",
    cause="a layer that is built and never called, or a lambda that holds the original",
)
def check_prior_parameters(prior: PriorSubject) -> None:
    """Guards parameters, files and copies.

    Fails it::

        self.mlp = lambda x: self.project(F.gelu(self.expand(x)))  # a copy still calls the original's layers
    """
    module, tokens, values = prior.excited(), prior.tokens(16), prior.values(16)
    # What stands for a dropped condition learns in training alone.
    for training in (False,) if prior.traits.strict else (True, False):
        for _ in range(8 if training else 1):
            logits = prior.logits(module.train(training), tokens, values)
            backward(F.cross_entropy(logits.flatten(0, 1), tokens.flatten()))
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    idle = [name for name, p in named.items() if p.grad is None or not bool(p.grad.any())]
    require(not idle, f"no gradient at {', '.join(idle[:6])}")
    other, twin = prior.fresh().eval(), copy.deepcopy(module)
    other.load_state_dict(module.state_dict(), strict=True)
    for each in (other, twin):
        text = prior.differ(prior.logits(each, tokens, values), logits)
        require(not text, f"a copy: {text}")
    before = state_of(module)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    require(not state_difference(state_of(module), before), "changing a copy changed the original")
    require(not prior.differ(prior.logits(module, tokens, values), logits), "changing a copy changed the original")


@PRIOR.check(
    rule="a fresh prior is nearly uniform, and training on two sequences learns them",
    cause="weights that start too large, or a gradient that is cut",
)
def check_prior_training(prior: PriorSubject) -> None:
    """Guards the whole: the loss starts near log(vocab_size), and falls to almost nothing in 60 steps.

    Fails it::

        nn.init.normal_(self.head.weight)  # std 1 instead of 0.02
    """
    tokens, values = prior.tokens(2), prior.values(2)
    uniform = math.log(prior.traits.vocab_size)
    # A head that starts as torch's linear layers do is a common choice, and some tenths of a nat from uniform.
    near = 0.3 if prior.traits.strict else 1.0
    low = (0.5 if prior.traits.vocab_size > 3 else 0.7) * uniform  # there is little to learn of so few tokens
    numbers = []
    for rate in (1e-2, 1e-3, 1e-1):  # a deep one wants small steps, a table large ones
        first, last = _train(prior, tokens, values, rate=rate)
        require(abs(first - uniform) < near, f"the first loss is {first:.3g}, log(vocab_size) is {uniform:.3g}")
        if last < low:
            return
        numbers.append(f"from {first:.3g} to {last:.3g} at a rate of {rate}")
    fail(f"in 80 steps the loss goes {', '.join(numbers)}")


def _train(prior: PriorSubject, tokens: Tensor, values: Values, *, rate: float) -> tuple[float, float]:
    """The loss of the first step, and its mean over the last five."""
    module = prior.fresh()
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    shift = 1 if prior.traits.predicts_next else 0
    losses = []
    for _ in range(80):
        logits = prior.logits(module, tokens, values)
        kept = logits[:, : logits.shape[1] - shift]
        loss = F.cross_entropy(kept.flatten(0, 1), tokens[:, shift:].flatten())
        optimizer.zero_grad()
        backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], sum(losses[-5:]) / 5
