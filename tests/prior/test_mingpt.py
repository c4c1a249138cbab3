"""The transformer's values, against a slow version in float64 and against laws."""

import numpy as np
import pytest
import torch

from vq_components import MinGPT

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64, a few hundred operations


def arrays(gpt):
    return {name: value.numpy() for name, value in gpt.state_dict().items()}


@pytest.mark.parametrize(("length", "n_unmasked"), [(1, 0), (1, 3), (2, 2), (9, 0), (9, 1), (9, 2), (9, 5), (9, 12)])
@pytest.mark.parametrize(("n_layer", "n_head"), [(1, 1), (3, 4)])
def test_logits_are_those_of_the_slow_version(build_gpt, reference, length, n_unmasked, n_layer, n_head):
    gpt = build_gpt(n_layer=n_layer, n_head=n_head, n_unmasked=n_unmasked)
    tokens = torch.randint(11, (2, length))
    expected = [reference.gpt.logits(arrays(gpt), row, n_head=n_head, n_unmasked=n_unmasked) for row in tokens.tolist()]
    logits = gpt(tokens)
    assert logits.shape == (2, length, 11)
    np.testing.assert_allclose(logits.detach(), np.stack(expected), **EXACT)


@pytest.mark.parametrize("n_unmasked", [0, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 4])
def test_embeddings_come_first_and_count(build_gpt, reference, n_unmasked, length):
    """They have positions and logits of their own."""
    gpt = build_gpt(n_unmasked=n_unmasked)
    tokens, embeddings = torch.randint(11, (2, length)), torch.randn(2, 3, 8, dtype=torch.float64)
    expected = [
        reference.gpt.logits(arrays(gpt), row, n_head=2, n_unmasked=n_unmasked, embeddings=first.numpy())
        for row, first in zip(tokens.tolist(), embeddings, strict=True)
    ]
    logits = gpt(tokens, embeddings=embeddings)
    assert logits.shape == (2, 3 + length, 11)
    np.testing.assert_allclose(logits.detach(), np.stack(expected), **EXACT)


def test_embeddings_of_tokens_are_as_the_tokens(build_gpt):
    gpt = build_gpt()
    tokens = torch.randint(11, (2, 7))
    torch.testing.assert_close(gpt(tokens[:, 3:], embeddings=gpt.tok_emb(tokens[:, :3])), gpt(tokens))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("n_unmasked", [0, 1, 3, 8])
def test_a_token_changes_the_logits_of_those_who_see_it_and_no_others(build_gpt, training, n_unmasked):
    """Exactly: what a position does not see has no weight at all."""
    gpt = build_gpt(n_unmasked=n_unmasked).train(training)
    tokens = torch.randint(11, (1, 8))
    before = gpt(tokens)
    for changed in range(8):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % 11
        differs = (gpt(other) != before).any(dim=2)[0].tolist()
        first_to_see = 0 if changed < n_unmasked else changed
        assert differs == [position >= first_to_see for position in range(8)]


def test_images_of_a_batch_do_not_see_each_other(build_gpt):
    gpt = build_gpt(n_unmasked=2)
    tokens = torch.randint(11, (3, 8))
    for row in range(3):
        torch.testing.assert_close(gpt(tokens)[row : row + 1], gpt(tokens[row : row + 1]))


def test_a_sequence_may_be_as_long_as_the_block_and_no_longer(build_gpt):
    gpt = build_gpt(block_size=5)
    assert gpt(torch.zeros(1, 5, dtype=torch.int64)).shape == (1, 5, 11)
    message = (
        "MinGPT has positions for 5 tokens, embeddings included, but got 6. "
        "Shorten the sequence, or build it with a larger block_size."
    )
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        gpt(torch.zeros(1, 6, dtype=torch.int64))
    assert str(error.value) == message
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        gpt(torch.zeros(1, 4, dtype=torch.int64), embeddings=torch.zeros(1, 2, 8))
    assert str(error.value) == message


@pytest.mark.parametrize(("tokens", "low", "high"), [([[3, -1]], -1, 3), ([[11, 0]], 0, 11)])
def test_tokens_out_of_range_are_an_error(build_gpt, tokens, low, high):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        build_gpt()(torch.tensor(tokens))
    assert str(error.value) == (
        f"MinGPT takes tokens in [0, 11), but got values from {low} to {high}. "
        f"Positions that a mask left out (-1) have no token; a larger codebook needs a larger vocabulary."
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.float16])
def test_tokens_that_are_no_integers_are_an_error(build_gpt, dtype):
    with pytest.raises(TypeError) as error:
        build_gpt()(torch.zeros(1, 2, dtype=dtype))
    assert str(error.value) == f"MinGPT takes int64 or int32 tokens, but got {dtype}. Convert them with .long()."


def test_int32_tokens_are_as_int64(build_gpt):
    gpt, tokens = build_gpt(), torch.randint(11, (2, 5))
    assert torch.equal(gpt(tokens.int()), gpt(tokens))


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)])
def test_tokens_of_another_shape_are_an_error(build_gpt, shape):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        build_gpt()(torch.zeros(shape, dtype=torch.int64))
    assert str(error.value) == (
        f"MinGPT takes tokens of shape (B, T), but got {shape}. "
        f"Flatten a grid of tokens, or give it an order with TokenOrder."
    )


@pytest.mark.parametrize("shape", [(2, 8), (1, 3, 8), (2, 3, 7)])
def test_embeddings_of_another_shape_are_an_error(build_gpt, shape):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        build_gpt()(torch.zeros(2, 4, dtype=torch.int64), embeddings=torch.zeros(shape))
    assert str(error.value) == (f"MinGPT takes embeddings of shape (2, E, 8), but got {shape}. Project them to n_embd.")


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_nothing_in_is_nothing_out(build_gpt, shape):
    """An empty batch, as in the last step of a distributed loader, and an empty sequence."""
    assert build_gpt()(torch.zeros(shape, dtype=torch.int64)).shape == (*shape, 11)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 0}, "MinGPT needs a positive vocab_size, but got 0."),
        ({"block_size": 0}, "MinGPT needs a positive block_size, but got 0."),
        ({"n_layer": 0}, "MinGPT needs a positive n_layer, but got 0."),
        ({"n_head": 0}, "MinGPT needs a positive n_head, but got 0."),
        ({"n_embd": -8}, "MinGPT needs a positive n_embd, but got -8."),
        ({"n_unmasked": -1}, "n_unmasked must be in [0, block_size=12], but got -1."),
        ({"n_unmasked": 13}, "n_unmasked must be in [0, block_size=12], but got 13."),
        (
            {"embd_pdrop": 1.5},
            "MinGPT drops shares in [0, 1], but got embd_pdrop, resid_pdrop, attn_pdrop=(1.5, 0.0, 0.0).",
        ),
        (
            {"attn_pdrop": -0.1},
            "MinGPT drops shares in [0, 1], but got embd_pdrop, resid_pdrop, attn_pdrop=(0.0, 0.0, -0.1).",
        ),
        (
            {"n_head": 3},
            "MinGPT splits n_embd into n_head equal heads, but got n_embd=8 and n_head=3. Change one of them.",
        ),
    ],
)
def test_settings_out_of_range_are_an_error(settings, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        MinGPT(**{"vocab_size": 11, "block_size": 12, "n_layer": 1, "n_head": 2, "n_embd": 8, **settings})
    assert str(error.value) == message


@pytest.mark.parametrize("kind", ["embd_pdrop", "resid_pdrop", "attn_pdrop"])
def test_each_dropout_works_in_training_alone(build_gpt, kind):
    gpt, tokens = build_gpt(**{kind: 0.5}), torch.randint(11, (2, 9))
    plain = build_gpt()
    plain.load_state_dict(gpt.state_dict())
    torch.testing.assert_close(gpt(tokens), plain(tokens))
    gpt.train()
    assert not torch.allclose(gpt(tokens), plain(tokens))
    assert not torch.allclose(gpt(tokens), gpt(tokens))


def test_the_residual_dropout_is_in_both_branches_of_a_block(build_gpt):
    """With all of it dropped, a block adds nothing; with one branch silenced, the other still drops."""
    gpt, tokens = build_gpt(resid_pdrop=1.0).train(), torch.randint(11, (2, 9))
    x = gpt.tok_emb(tokens) + gpt.pos_emb[:, :9]
    torch.testing.assert_close(gpt(tokens), gpt.head(gpt.ln_f(x)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("n_unmasked", [0, 3])
def test_every_parameter_gets_a_gradient(build_gpt, training, n_unmasked):
    """All positions are in use, all tokens come in: no row of an embedding is left out."""
    gpt = build_gpt(n_unmasked=n_unmasked).train(training)
    tokens = torch.stack([torch.randperm(11) for _ in range(3)]).repeat(1, 2)[:, :12]
    gpt(tokens).square().mean().backward()
    for name, parameter in gpt.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("attn.key.bias"):  # the same for all keys: softmax() does not see it
            assert (parameter.grad.flatten(-1) != 0).all(), name
    assert (gpt.tok_emb.weight.grad != 0).any(dim=1).all()
    assert (gpt.pos_emb.grad != 0).any(dim=2).all()
