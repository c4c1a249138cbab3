"""How each condition's values become tokens."""

import itertools

import pytest
import torch

from vq_components import ClassLabel, Condition, Coordinates, SpatialTokens, StartToken

LIKE = torch.zeros(2, 16, dtype=torch.int64)
ADVICE = {
    ClassLabel: "Pass one number per image; of one-hot rows it is their argmax(dim=1).",
    SpatialTokens: "Pass one grid for each image.",
    Coordinates: "Pass a row (down, right) for each image.",
}


def test_the_start_token_is_a_constant():
    assert StartToken().encode(None, like=LIKE).tolist() == [[0], [0]]
    assert StartToken().vocab_size == 1
    assert not StartToken().takes_value


def test_class_labels_are_tokens_as_they_are():
    condition = ClassLabel(5)
    assert condition.vocab_size == 5
    assert condition.encode(torch.tensor([4, 0]), like=LIKE).tolist() == [[4], [0]]


def test_spatial_tokens_are_raster_order_whether_grid_or_flat():
    condition = SpatialTokens(9)
    assert condition.vocab_size == 9
    grid = torch.randint(9, (2, 3, 2))
    expected = [[row[i][j] for i in range(3) for j in range(2)] for row in grid.tolist()]
    assert condition.encode(grid, like=LIKE).tolist() == expected
    assert condition.encode(grid.flatten(1), like=LIKE).tolist() == expected


@pytest.mark.parametrize("bins", [1, 2, 7, 16])
def test_coordinates_are_equal_bins(bins):
    condition = Coordinates(bins)
    assert condition.vocab_size == bins
    for bin_ in range(bins):
        middle, start = (bin_ + 0.5) / bins, (bin_ + 1e-5) / bins
        value = torch.tensor([[middle, start], [start, middle]])
        assert condition.encode(value, like=LIKE).tolist() == [[bin_, bin_]] * 2
    ends = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert condition.encode(ends, like=LIKE).tolist() == [[0, bins - 1], [bins - 1, 0]]


@pytest.mark.parametrize(
    ("condition", "value", "message"),
    [
        (ClassLabel(5), torch.zeros(3).long(), "ClassLabel takes labels of shape (2,), but got (3,)."),
        (ClassLabel(5), torch.zeros(2, 1).long(), "ClassLabel takes labels of shape (2,), but got (2, 1)."),
        (ClassLabel(5), torch.tensor(1), "ClassLabel takes labels of shape (2,), but got ()."),
        (
            SpatialTokens(5),
            torch.zeros(3, 4).long(),
            "SpatialTokens takes tokens of shape (2, h, w) or (2, h * w), but got (3, 4).",
        ),
        (
            SpatialTokens(5),
            torch.zeros(2, 1, 4, 4).long(),
            "SpatialTokens takes tokens of shape (2, h, w) or (2, h * w), but got (2, 1, 4, 4).",
        ),
        (
            SpatialTokens(5),
            torch.zeros(2).long(),
            "SpatialTokens takes tokens of shape (2, h, w) or (2, h * w), but got (2,).",
        ),
        (
            Coordinates(5),
            torch.zeros(2, 3),
            "Coordinates takes floating point numbers in [0, 1] of shape (2, 2), "
            "but got torch.float32 of shape (2, 3).",
        ),
        (
            Coordinates(5),
            torch.zeros(2, 2).long(),
            "Coordinates takes floating point numbers in [0, 1] of shape (2, 2), but got torch.int64 of shape (2, 2).",
        ),
    ],
)
def test_values_of_another_shape_are_an_error(condition, value, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        condition.encode(value, like=LIKE)
    assert str(error.value) == f"{message} {ADVICE[type(condition)]}"


@pytest.mark.parametrize("condition", [ClassLabel(5), SpatialTokens(5), Coordinates(5)])
@pytest.mark.parametrize(("value", "kind"), [(None, "NoneType"), (3, "int"), ([0, 1], "list")])
def test_values_that_are_no_tensors_are_an_error(condition, value, kind):
    with pytest.raises(TypeError) as error:
        condition.encode(value, like=LIKE)
    assert str(error.value) == f"{type(condition).__name__} takes a tensor as its value, but got {kind}."


@pytest.mark.parametrize(
    ("condition", "shape", "noun"), [(ClassLabel(5), (2,), "labels"), (SpatialTokens(5), (2, 4), "tokens")]
)
@pytest.mark.parametrize(("bad", "low", "high"), [(5, 0, 5), (-1, -1, 0)])
def test_values_out_of_range_are_an_error(condition, shape, noun, bad, low, high):
    value = torch.zeros(shape, dtype=torch.int64)
    value.view(-1)[-1] = bad
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        condition.encode(value, like=LIKE)
    assert str(error.value).startswith(
        f"{type(condition).__name__} takes {noun} in [0, 5), but got values from {low} to {high}."
    )
    with pytest.raises(TypeError) as error:
        condition.encode(value.float(), like=LIKE)
    assert str(error.value) == (
        f"{type(condition).__name__} takes int64 or int32 {noun}, but got torch.float32. Convert them with .long()."
    )


def test_conditions_are_values():
    """Equal settings, equal conditions; they can be keys, and cannot be changed."""
    kinds = (ClassLabel, SpatialTokens, Coordinates)
    assert len({kind(size) for kind, size in itertools.product(kinds, (3, 4, 3))}) == 6
    assert StartToken() == StartToken()
    for condition in (ClassLabel(3), SpatialTokens(3), Coordinates(3), StartToken()):
        assert isinstance(condition, Condition)
        with pytest.raises(AttributeError):
            condition.num_classes = 7


def test_a_condition_without_encode_is_none():
    with pytest.raises(TypeError, match="abstract"):
        Condition()


@pytest.mark.parametrize("value", [-0.1, 1.01, 120.0, float("nan")])
def test_coordinates_outside_of_the_image_are_an_error(value):
    with pytest.raises(ValueError, match=r"Coordinates takes numbers in \[0, 1\], but got"):
        Coordinates(5).encode(torch.tensor([[0.5, value], [0.0, 1.0]]), like=LIKE)


@pytest.mark.parametrize(
    ("kind", "name"), [(ClassLabel, "num_classes"), (SpatialTokens, "codebook_size"), (Coordinates, "bins")]
)
def test_a_condition_without_tokens_is_an_error(kind, name):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        kind(0)
    assert str(error.value) == f"{kind.__name__} needs a positive {name}, but got 0."
