"""The original's own values, from its own checkpoints."""

import pytest
import torch
from torch.nn import functional as F

from vq_components import ConditionalPrior, MinGPT, StartToken, TokenOrder, generate

FILES = ["gpt_unmasked0", "gpt_unmasked5"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # two kernels of attention in float32
ORDERS = {
    "Identity": TokenOrder.raster,
    "Subsample": TokenOrder.subsample,
    "ZCurve": TokenOrder.z_curve,
    "SpiralOut": TokenOrder.spiral_out,
    "SpiralIn": TokenOrder.spiral_in,
    "AlternateParsing": TokenOrder.alternate,
}


@pytest.fixture(params=FILES)
def original(golden, request):
    """The original's transformer, loaded strictly, and its inputs and outputs."""
    args, weights, given = golden(request.param)
    gpt = MinGPT(**args)
    assert any(key.endswith("attn.mask") for key in weights)
    result = gpt.load_state_dict(weights, strict=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    return gpt, given


@pytest.mark.parametrize("training", [True, False])
def test_logits_and_loss_are_the_originals(original, training):
    gpt, given = original
    tokens = given["idx"]
    logits = gpt.train(training)(tokens[:, :-1])
    torch.testing.assert_close(logits, given["logits"], **CLOSE)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, given["loss"], **CLOSE)


def test_logits_after_prepended_embeddings_are_the_originals(original):
    gpt, given = original
    logits = gpt(given["idx"][:, :8], embeddings=given["embeddings"])
    torch.testing.assert_close(logits, given["logits_with_embeddings"], **CLOSE)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": 1}])
def test_the_likeliest_continuation_is_the_originals(original, settings):
    gpt, given = original
    assert torch.equal(generate(gpt, given["idx"][:, :2], max_new_tokens=10, **settings), given["greedy"])


@pytest.mark.parametrize("n_unmasked", [0, 1, 4, 6])
@pytest.mark.parametrize("strict", [True, False])
def test_masks_of_another_n_unmasked_are_an_error(golden, n_unmasked, strict):
    args, weights, _ = golden("gpt_unmasked5")
    gpt = MinGPT(**{**args, "n_unmasked": n_unmasked})
    with pytest.raises(RuntimeError) as error:
        gpt.load_state_dict(weights, strict=strict)
    assert str(error.value) == "Error(s) in loading state_dict for MinGPT:" + "".join(
        f"\n\tblocks.{layer}.attn.mask is of a model with n_unmasked=5, but this one has {n_unmasked}."
        for layer in range(2)
    )


def test_zero_and_one_unmasked_position_are_the_same_mask(golden):
    args, weights, given = golden("gpt_unmasked0")
    gpt = MinGPT(**{**args, "n_unmasked": 1})
    gpt.load_state_dict(weights, strict=True)
    torch.testing.assert_close(gpt(given["idx"][:, :-1]), given["logits"], **CLOSE)


def test_loading_leaves_the_files_dictionary_as_it_was_and_saves_no_mask(golden):
    args, weights, _ = golden("gpt_unmasked5")
    keys = list(weights)
    gpt = MinGPT(**args)
    gpt.load_state_dict(weights)
    assert list(weights) == keys
    assert set(gpt.state_dict()) == {key for key in keys if not key.endswith("attn.mask")}


def test_the_original_loads_inside_of_a_prior_too(golden):
    args, weights, _ = golden("gpt_unmasked5")
    prior = ConditionalPrior(MinGPT(**args), image_vocab=19, conditions=(StartToken(),))
    prior.load_state_dict({f"gpt.{key}": value for key, value in weights.items()}, strict=True)
    assert all(torch.equal(value, weights[key]) for key, value in prior.gpt.state_dict().items())


def test_only_masks_are_let_through(golden):
    args, weights, _ = golden("gpt_unmasked5")
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"blocks.0.attn.masks\""):
        MinGPT(**args).load_state_dict({**weights, "blocks.0.attn.masks": torch.ones(1)})


@pytest.mark.parametrize("name", ORDERS)
def test_token_orders_are_the_originals_permuters(golden, name):
    args, _, given = golden("permuters")
    assert torch.equal(ORDERS[name](args["H"], args["W"]).indices, given[name])
