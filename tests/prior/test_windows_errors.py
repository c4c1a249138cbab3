"""What sampling in windows refuses."""

import re

import pytest
import torch

from vq_components import ClassLabel, Coordinates, SpatialTokens, StartToken, generate, generate_windows

LABELS = torch.tensor([0, 2])
SIZES = {"grid": (4, 6), "window": (3, 3), "batch_size": 2}


def message_of(prior, **settings):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        generate_windows(prior, **{**SIZES, **settings})
    return str(error.value)


def test_a_window_and_its_conditions_fit_the_block_without_the_last_token(build_prior):
    assert generate_windows(build_prior(StartToken(), block_size=9), **SIZES).shape == (2, 4, 6)
    assert message_of(build_prior(StartToken(), block_size=8)) == (
        "A window of 3 x 3 with its conditions needs 9 positions, but the model's block_size is 8. "
        "Pass the size of the grids that it was trained on."
    )
    # What counts is the window's part of the grid.
    prior = build_prior(StartToken(), block_size=6)
    assert generate_windows(prior, grid=(2, 6), window=(3, 3)).shape == (1, 2, 6)


def test_spatial_tokens_of_the_window_count(build_prior):
    prior = build_prior(SpatialTokens(5), block_size=16)
    assert message_of(prior, conditions=(torch.zeros(2, 4, 6).long(),)) == (
        "A window of 3 x 3 with its conditions needs 17 positions, but the model's block_size is 16. "
        "Pass the size of the grids that it was trained on."
    )


def test_image_tokens_that_see_what_is_behind_them_are_an_error(build_prior):
    assert message_of(build_prior(StartToken(), n_unmasked=2)) == (
        "The transformer's first n_unmasked=2 positions see each other, but only 1 of them are the conditions': "
        "the image's tokens would see what they predict. Build it with n_unmasked=1 at most; "
        "a window of a smaller grid has fewer conditions."
    )


@pytest.mark.parametrize("wrong", [{"grid": (0, 4)}, {"window": (2, -1)}])
def test_sizes_are_positive(build_prior, wrong):
    settings = {**SIZES, **wrong}
    assert message_of(build_prior(StartToken()), **wrong) == (
        f"generate_windows needs positive sizes, but got grid={settings['grid']} and window={settings['window']}."
    )


@pytest.mark.parametrize(
    ("conditions", "values", "count", "names", "came"),
    [
        ((ClassLabel(3), Coordinates(4)), (), 1, "ClassLabel", 0),
        ((ClassLabel(3), Coordinates(4)), (LABELS, torch.zeros(2, 2)), 1, "ClassLabel", 2),
        ((Coordinates(4),), (torch.zeros(2, 2),), 0, "none takes one", 1),
        ((ClassLabel(3),), LABELS, 1, "ClassLabel", "a tensor"),
    ],
)
def test_another_number_of_values_is_an_error(build_prior, conditions, values, count, names, came):
    """Coordinates are left out: they follow the window."""
    assert message_of(build_prior(*conditions), conditions=values) == (
        f"ConditionalPrior takes a tuple of {count} values, one for each of its conditions ({names}), "
        f"but got {came}. {'Pass conditions=(value, ...).' if count else 'Leave conditions out.'}"
    )


@pytest.mark.parametrize("shape", [(2, 24), (2, 3, 6), (2, 4, 5), (2, 2, 3), (2, 1, 4, 6), (2,)])
def test_spatial_tokens_that_windows_do_not_cut_into_whole_cells_are_an_error(build_prior, shape):
    prior = build_prior(SpatialTokens(5), block_size=60)
    assert message_of(prior, conditions=(torch.zeros(shape).long(),)) == (
        "In windows of 3 x 3 in a grid of 4 x 6, SpatialTokens takes a grid (B, h, w) of which such a window "
        f"covers whole cells, but got shape {shape}. Give it for the whole grid, in its proportions."
    )


@pytest.mark.parametrize("name", ["grid", "window"])
@pytest.mark.parametrize("size", [4, (4,), (4, 4, 4)])
def test_a_size_that_is_no_pair_is_an_error(build_prior, name, size):
    with pytest.raises(TypeError) as error:
        generate_windows(build_prior(StartToken()), **{**SIZES, name: size})
    assert str(error.value) == f"{name} is a pair, height and width in tokens, but got {size}. Pass {name}=(4, 4)."


def error_of_both_samplers(prior, **settings):
    """The TypeError of both samplers, which is the same."""
    with pytest.raises(TypeError) as error:
        generate_windows(prior, **SIZES, **settings)
    with pytest.raises(TypeError, match=re.escape(str(error.value))):
        generate(prior, max_new_tokens=2, batch_size=1, **settings)
    return str(error.value)


def test_a_seed_is_no_generator_and_true_is_no_progress(build_prior):
    prior = build_prior(StartToken())
    assert error_of_both_samplers(prior, generator=0) == (
        "generator must be a torch.Generator, but got int. Pass torch.Generator().manual_seed(0), for example."
    )
    assert error_of_both_samplers(prior, progress=True) == (
        "progress is called with the steps and returns them, but got True. Pass tqdm.tqdm, for example."
    )


@pytest.mark.parametrize("value", [None, [[0]]])
def test_spatial_tokens_that_are_no_tensor_are_an_error(build_prior, value):
    with pytest.raises(TypeError) as error:
        generate_windows(build_prior(SpatialTokens(5)), **SIZES, conditions=(value,))
    assert str(error.value) == f"Conditions take tensors as their values, but got {type(value).__name__}."


def test_settings_are_checked_as_in_generate(build_prior):
    prior = build_prior(StartToken())
    assert message_of(prior, top_k=0) == "top_k must be at least 1, but got 0. Pass None to keep all tokens."
    assert message_of(prior, guidance=2.0).startswith("guidance compares with images without conditions, which")
    assert message_of(prior, allowed_tokens=torch.ones(8).bool()) == (
        "allowed_tokens must be bool, True where a token may be sampled, of shape (7,) or (2, 7), "
        "but got torch.bool of shape (8,)."
    )


def test_a_transformer_alone_is_an_error(build_gpt):
    with pytest.raises(TypeError) as error:
        generate_windows(build_gpt(), **SIZES)
    assert str(error.value) == (
        "generate_windows needs a ConditionalPrior, which knows how an image starts. Wrap the MinGPT."
    )


def test_the_number_of_grids_is_that_of_the_conditions(build_prior):
    """As in generate: it need not be said twice, and must not be said differently."""
    prior = build_prior(ClassLabel(3))
    assert generate_windows(prior, grid=(3, 3), window=(2, 2), conditions=(LABELS,)).shape == (2, 3, 3)
    assert message_of(prior, batch_size=3, conditions=(LABELS,)) == (
        "Sampling needs one number of sequences, from prompt, conditions, embeddings or batch_size, "
        "but these say [2, 3]. Pass batch_size, or tensors of one batch."
    )
