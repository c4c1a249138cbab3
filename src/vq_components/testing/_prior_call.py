"""The first check of a prior: whether it can be called as declared."""

from functools import partial

from torch import Tensor

from ._compare import kind_of
from ._engine import GATE
from ._prior_subject import PRIOR, PriorSubject
from ._report import attempt, require


@PRIOR.check(
    rule="a call with tokens as declared gives logits (B, T, vocab_size) of the tokens that the traits say",
    cause="traits that do not fit: vocab_size=, length=, conditions=, and predicts_next=False where logits at t are of "
    "token t itself; or an adapter whose logits= returns something else",
    rank=GATE,
)
def check_prior_call(prior: PriorSubject) -> None:
    """Guards the other checks against traits and adapters that do not fit: while it fails, they are not run.

    Fails it::

        traits=PriorTraits(vocab_size=1025, length=256)  # of a prior with 1024 tokens
    """
    module, tokens, values = prior.excited(), prior.tokens(2), prior.values(2)
    where = f"for tokens {tuple(tokens.shape)} in [0, {prior.traits.vocab_size})"
    logits = attempt(where, partial(prior.logits, module, tokens, values))
    floating = isinstance(logits, Tensor) and logits.is_floating_point() and logits.ndim == 3
    require(floating, f"logits are {kind_of(logits)}")
    expected = (*tokens.shape, prior.traits.vocab_size)
    require(logits.shape == expected, f"for tokens {tuple(tokens.shape)} logits are {kind_of(logits)}, not {expected}")
    if not prior.traits.predicts_next or prior.traits.n_unmasked or tokens.shape[1] < 2:
        return
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % prior.traits.vocab_size
    moved = (prior.logits(module, changed, values) - logits).detach().abs().amax(dim=(0, 2)) > 1e-6
    shifted = not bool(moved[0]) and bool(moved[1])
    require(not shifted, "token 0 changes logits at 1, and not at 0: they are of token t itself, given those before it")
