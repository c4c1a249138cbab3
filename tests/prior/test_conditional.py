"""Logits and likelihoods of images, against the transformer on a sequence put together by hand."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from vq_components import (
    ClassLabel,
    ConditionalPrior,
    Coordinates,
    MinGPT,
    PriorOutput,
    SpatialTokens,
    StartToken,
)

ALL = (ClassLabel(3), StartToken(), SpatialTokens(5), Coordinates(4))  # after 7 image tokens: 7, 10, 11, 16
LABELS, PLACES = torch.tensor([2, 0]), torch.tensor([[0.0, 0.6], [1.0, 0.3]])  # bins 0 2 and 3 1
SPATIAL = torch.tensor([[[4, 1], [0, 3]], [[2, 2], [1, 0]]])
WITH_OFFSET = torch.tensor([[9, 10, 15, 12, 11, 14, 16, 18], [7, 10, 13, 13, 12, 11, 19, 17]])
WITHOUT = torch.tensor([[2, 0, 4, 1, 0, 3, 0, 2], [0, 0, 2, 2, 1, 0, 3, 1]])


@pytest.mark.parametrize(("offset", "prefix", "size"), [(True, WITH_OFFSET, 20), (False, WITHOUT, 7)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("n_unmasked", [0, 8])
def test_logits_and_loss_are_the_transformers_on_the_whole_sequence(
    build_prior, offset, prefix, size, training, n_unmasked
):
    prior = build_prior(*ALL, offset=offset, block_size=20, n_unmasked=n_unmasked).train(training)
    assert prior.gpt.vocab_size == size
    tokens = torch.randint(7, (2, 9))
    expected = prior.gpt(torch.cat([prefix, tokens], dim=1))[:, 7:-1, :7]  # each from the position before it

    out = prior(tokens, (LABELS, SPATIAL, PLACES))

    assert type(out) is PriorOutput
    assert out.logits.shape == (2, 9, 7)
    torch.testing.assert_close(out.logits, expected)
    loss = F.cross_entropy(expected.flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(out.loss, loss.float())
    torch.testing.assert_close(out.bits_per_token, loss.float().detach() / math.log(2))
    assert out.loss.dtype == torch.float32
    assert out.loss.requires_grad
    assert not out.bits_per_token.requires_grad


@pytest.mark.parametrize(
    ("conditions", "values", "prefix"),
    [
        ((StartToken(),), (), [[7], [7]]),
        ((ClassLabel(3),), (LABELS,), [[9], [7]]),
        ((SpatialTokens(5),), (SPATIAL,), [[11, 8, 7, 10], [9, 9, 8, 7]]),
        ((SpatialTokens(5),), (SPATIAL.flatten(1),), [[11, 8, 7, 10], [9, 9, 8, 7]]),
        ((Coordinates(4),), (PLACES,), [[7, 9], [10, 8]]),
        ((Coordinates(4), ClassLabel(3)), (PLACES, LABELS), [[7, 9, 13], [10, 8, 11]]),
        ((ClassLabel(3), ClassLabel(3)), (LABELS, LABELS.flip(0)), [[9, 10], [7, 12]]),
    ],
)
def test_each_condition_has_token_numbers_of_its_own(build_prior, conditions, values, prefix):
    prior = build_prior(*conditions)
    assert prior.prefix(torch.zeros(2, 1), values).tolist() == prefix


def test_a_grid_of_tokens_is_as_the_flat_ones(build_prior):
    prior, tokens = build_prior(), torch.randint(7, (2, 3, 4))
    grid, flat = prior(tokens, (LABELS,)), prior(tokens.flatten(1), (LABELS,))
    assert torch.equal(grid.logits, flat.logits)
    assert torch.equal(grid.loss, flat.loss)


def test_int32_tokens_are_as_int64(build_prior):
    prior, tokens = build_prior(), torch.randint(7, (2, 4))
    assert torch.equal(prior(tokens.int(), (LABELS,)).loss, prior(tokens, (LABELS,)).loss)


def test_a_token_is_predicted_from_those_before_it_alone(build_prior):
    """Exactly, whatever the conditions see of each other."""
    prior, tokens = build_prior(*ALL, block_size=20, n_unmasked=8), torch.randint(7, (2, 8))
    before = prior(tokens, (LABELS, SPATIAL, PLACES)).logits
    for changed in range(8):
        other = tokens.clone()
        other[:, changed] = (other[:, changed] + 1) % 7
        differs = (prior(other, (LABELS, SPATIAL, PLACES)).logits != before).flatten(2).any(dim=2).any(dim=0)
        assert differs.tolist() == [position > changed for position in range(8)]


def test_a_transformer_that_sees_the_tokens_it_predicts_is_an_error(build_prior):
    """With n_unmasked beyond the conditions, tokens are inputs of their own logits: the loss would be a lie."""
    prior = build_prior(StartToken(), n_unmasked=4)
    with pytest.raises(ValueError, match="n_unmasked"):
        prior(torch.randint(7, (2, 6)))


@pytest.mark.parametrize("place", range(3))
def test_every_condition_matters_to_every_token(build_prior, place):
    prior, tokens = build_prior(*ALL, block_size=20), torch.randint(7, (2, 8))
    values = [LABELS, SPATIAL, PLACES]
    before = prior(tokens, values).logits
    values[place] = values[place].flip(0)
    assert ((prior(tokens, values).logits - before).abs().amax(dim=2) > 1e-6).all()


def test_a_uniform_guess_has_the_logarithm_of_the_number_of_image_tokens(build_prior):
    prior = build_prior(ClassLabel(30), image_vocab=8)
    torch.nn.init.zeros_(prior.gpt.head.weight)
    assert prior(torch.randint(8, (2, 4)), (LABELS,)).bits_per_token.item() == pytest.approx(3)


def test_conditions_and_all_but_the_last_token_fill_the_block(build_prior):
    prior = build_prior(block_size=6)
    assert prior(torch.zeros(2, 6, dtype=torch.int64), (LABELS,)).logits.shape == (2, 6, 7)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        prior(torch.zeros(2, 7, dtype=torch.int64), (LABELS,))
    assert str(error.value) == (
        "MinGPT has positions for 6 tokens, embeddings included, but got 7. "
        "Shorten the sequence, or build it with a larger block_size."
    )


def test_a_larger_vocabulary_than_needed_will_do():
    conditions = (ClassLabel(3),)
    prior = ConditionalPrior(
        MinGPT(50, 8, n_layer=1, n_head=1, n_embd=4), image_vocab=7, conditions=conditions, condition_dropout=0.1
    )
    dropped = torch.tensor([True, False])
    assert prior.prefix(torch.zeros(2, 1), (LABELS,), dropped=dropped).tolist() == [[10], [7]]


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, 20),
        ({"offset": False}, 7),
        ({"condition_dropout": 0.1}, 21),
        ({"offset": False, "condition_dropout": 0.1}, 8),
        ({"offset": False, "image_vocab": 4}, 5),
    ],
)
def test_the_vocabulary_adds_up(settings, size):
    assert ConditionalPrior.vocab_size(**{"image_vocab": 7, "conditions": ALL, **settings}) == size
    gpt = MinGPT(size - 1, 8, n_layer=1, n_head=1, n_embd=4)
    image_vocab = settings.get("image_vocab", 7)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        ConditionalPrior(gpt, **{"image_vocab": 7, "conditions": ALL, **settings})
    assert str(error.value) == (
        f"These conditions and image_vocab={image_vocab} need a transformer with vocab_size={size}, "
        f"but got {size - 1}. ConditionalPrior.vocab_size() gives the number."
    )


@pytest.mark.parametrize(
    ("conditions", "values", "count", "names", "came"),
    [
        ((ClassLabel(3), StartToken(), Coordinates(4)), (), 2, "ClassLabel, Coordinates", 0),
        ((ClassLabel(3),), (LABELS, LABELS), 1, "ClassLabel", 2),
        ((StartToken(),), (LABELS,), 0, "none takes one", 1),
        ((ClassLabel(3),), LABELS, 1, "ClassLabel", "a tensor"),
    ],
)
def test_another_number_of_values_is_an_error(build_prior, conditions, values, count, names, came):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        build_prior(*conditions)(torch.zeros(2, 4, dtype=torch.int64), values)
    assert str(error.value) == (
        f"ConditionalPrior takes a tuple of {count} values, one for each of its conditions ({names}), "
        f"but got {came}. {'Pass conditions=(value, ...).' if count else 'Leave conditions out.'}"
    )


@pytest.mark.parametrize("wrong", [ClassLabel, StartToken, 3, "class"])
def test_what_is_no_condition_is_an_error(wrong):
    text = f"conditions are a tuple of conditions, built, but got {wrong!r}. Pass for example (ClassLabel(10),)."
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        ConditionalPrior.vocab_size(image_vocab=7, conditions=(ClassLabel(3), wrong))
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        ConditionalPrior(MinGPT(20, 12, n_layer=1, n_head=1, n_embd=4), image_vocab=7, conditions=(wrong,))


def test_a_condition_alone_is_an_error():
    text = "conditions are a tuple, but got ClassLabel(num_classes=3) alone. Pass (ClassLabel(num_classes=3),)."
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        ConditionalPrior.vocab_size(image_vocab=7, conditions=ClassLabel(3))


@pytest.mark.parametrize("shape", [(2, 0), (4,), (2, 0, 3), (2, 2, 3, 2)])
def test_tokens_of_another_shape_are_an_error(build_prior, shape):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        build_prior()(torch.zeros(shape, dtype=torch.int64), (LABELS,))
    assert str(error.value) == (
        f"ConditionalPrior takes tokens (B, T) or (B, h, w), but got {shape}. "
        f"Several for each position, of a residual or grouped quantizer, become a sequence by flatten(1)."
    )


def test_tokens_out_of_the_images_range_are_an_error(build_prior):
    """The transformer knows more of them, those of the conditions."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        build_prior()(torch.full((2, 4), 7), (LABELS,))
    assert str(error.value) == (
        "ConditionalPrior takes tokens in [0, 7), but got values from 7 to 7. "
        "Positions that a mask left out (-1) have no token; a larger codebook needs a larger vocabulary."
    )
    with pytest.raises(TypeError) as error:
        build_prior()(torch.zeros(2, 4), (LABELS,))
    assert (
        str(error.value)
        == "ConditionalPrior takes int64 or int32 tokens, but got torch.float32. Convert them with .long()."
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"conditions": ()},
            "ConditionalPrior needs something before the first token: pass StartToken() at least.",
        ),
        ({"pkeep": 1.5}, "pkeep and condition_dropout are shares in [0, 1], but got 1.5 and 0.0."),
        ({"condition_dropout": -0.1}, "pkeep and condition_dropout are shares in [0, 1], but got 1.0 and -0.1."),
    ],
)
def test_settings_out_of_range_are_an_error(settings, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        ConditionalPrior(MinGPT(8, 8, n_layer=1, n_head=1, n_embd=4), image_vocab=7, **settings)
    assert str(error.value) == message
