"""Checks seen red: orders and samplers of another make, right and wrong."""

import dataclasses
import re

import pytest
import torch
import torch.nn.functional as F

from vq_components import ClassLabel, ConditionalPrior, MinGPT, TokenOrder, testing
from vq_components.testing import CheckError, CheckFailure, PriorAdapter, PriorSubject, PriorTraits

ORDER_CHECKS = [testing.check_order_is_a_permutation, testing.check_order_undo]


class Columns:
    """Column by column, without any of our names but ``apply`` and ``undo``."""

    def apply(self, tokens):
        grid = tokens if tokens.shape[-2:] == (2, 3) else tokens.unflatten(-1, (2, 3))
        return grid.mT.flatten(-2)

    def undo(self, sequence):
        return sequence.unflatten(-1, (3, 2)).mT.flatten(-2)


class Twice(Columns):
    def undo(self, sequence):
        return self.apply(sequence)


class Forgetful(Columns):
    def apply(self, tokens):
        sequence = Columns.apply(self, tokens).clone()
        sequence[..., 0] = sequence[..., 1]
        return sequence


class Early(TokenOrder):
    """Height and width swapped for one of the orders."""

    @classmethod
    def alternate(cls, height, width):
        turned = TokenOrder.alternate(width, height).indices
        return cls(turned // height + turned % height * width, grid=(height, width))


def subject(order, *, strict=False):
    torch.manual_seed(0)
    traits = PriorTraits(vocab_size=7, length=6, grid=(2, 3), order=order, strict=strict)
    return PriorSubject(
        MinGPT(7, 6, n_layer=1, n_head=2, n_embd=8), adapter=PriorAdapter(logits=lambda m, t, v: m(t)), traits=traits
    )


def test_an_order_of_another_make_raises_no_alarm():
    for check in ORDER_CHECKS:
        check(subject(Columns()))
    names = testing.checks_of(subject(Columns()))
    assert {"check_order_is_a_permutation", "check_order_undo"} <= set(names)
    assert not {"check_order_paths", "check_order_refuses"} & set(names)


def test_an_order_that_is_undone_by_itself_is_seen():
    with pytest.raises(CheckFailure, match="undo of apply"):
        testing.check_order_undo(subject(Twice()))


def test_a_token_that_is_lost_is_seen():
    with pytest.raises(CheckFailure, match="positions in their order"):
        testing.check_order_is_a_permutation(subject(Forgetful()))


def test_an_order_that_goes_by_columns_is_seen():
    with pytest.raises(CheckFailure, match="alternate"):
        testing.check_order_paths(subject(Early.raster(2, 3), strict=True))


@pytest.mark.parametrize(
    ("traits", "measured"),
    [
        ({"vocab_size": 900}, r"tokens \(2, 6\) in \[0, 900\): raised ValueError"),
        ({"vocab_size": 5}, r"logits are torch\.float32 \(2, 6, 7\), not \(2, 6, 5\)"),
        ({"length": 7}, "raised ValueError"),
    ],
)
def test_traits_that_do_not_fit_are_told(traits, measured):
    declared = dataclasses.replace(PriorTraits(vocab_size=7, length=6), **traits)
    prior = MinGPT(7, 6, n_layer=1, n_head=1, n_embd=8)
    with pytest.raises(CheckError, match="cannot be called as declared") as error:
        testing.check_prior(prior, traits=declared)
    assert re.search(measured, error.value.failures[0].measured)


def test_logits_of_the_token_itself_are_told():
    adapter = PriorAdapter(logits=lambda module, tokens, values: module(F.pad(tokens, (1, -1))))
    with pytest.raises(CheckFailure, match="token 0 changes logits at 1, and not at 0"):
        testing.check_prior_call(
            MinGPT(7, 6, n_layer=1, n_head=1, n_embd=8), adapter=adapter, traits=PriorTraits(vocab_size=7, length=6)
        )


def test_without_an_order_nothing_is_checked():
    assert not any(name.startswith("check_order") for name in testing.checks_of(subject(None)))


class Dropping(MinGPT):
    """Embeddings are dropped at another share than it was told."""

    def __init__(self, *args, embd_pdrop, **settings):
        super().__init__(*args, embd_pdrop=embd_pdrop / 2, **settings)


def test_a_share_of_dropout_that_is_not_the_declared_one_is_seen():
    traits = PriorTraits(vocab_size=7, length=6, dropout=(0.4, 0.0, 0.0))
    for kind in (MinGPT, Dropping):
        prior = PriorSubject(kind(7, 6, embd_pdrop=0.4, n_layer=1, n_head=2, n_embd=8), traits=traits)
        if kind is MinGPT:
            testing.check_dropout_shares(prior)
            continue
        with pytest.raises(CheckFailure, match=r"a share of 0\.\d+ is dropped, not 0\.4"):
            testing.check_dropout_shares(prior)


def test_a_sampler_that_forgets_guidance_in_windows_is_seen():
    settings = {"image_vocab": 5, "conditions": (ClassLabel(3),), "condition_dropout": 0.2}
    gpt = MinGPT(ConditionalPrior.vocab_size(**settings), 5, n_layer=1, n_head=2, n_embd=8)
    traits = PriorTraits(
        vocab_size=5,
        length=4,
        predicts_next=False,
        conditions=lambda batch: (torch.randint(3, (batch,)),),
        guided=True,
        grid=(2, 2),
    )
    right = PriorSubject(ConditionalPrior(gpt, **settings), traits=traits)
    testing.check_windows_settings(right)

    def forgetful(*args):
        return right.adapter.windows(
            *args[:-1], {name: value for name, value in args[-1].items() if name != "guidance"}
        )

    wrong = PriorSubject(
        ConditionalPrior(gpt, **settings),
        adapter=dataclasses.replace(right.adapter, windows=forgetful),
        traits=traits,
    )
    with pytest.raises(CheckFailure, match="guidance"):
        testing.check_windows_settings(wrong)
