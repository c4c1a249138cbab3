"""Ways through a grid: inverses, laws, and definitions of another kind."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vq_components import TokenOrder

NAMES = ["raster", "alternate", "z_curve", "subsample", "spiral_in", "spiral_out"]
GRIDS = [(1, 1), (1, 7), (7, 1), (2, 2), (3, 3), (5, 4), (4, 5), (8, 8), (7, 9), (16, 2), (3, 20), (17, 17)]


@pytest.fixture(params=NAMES)
def make(request):
    """``make(height, width)``: one of the six orders."""
    return getattr(TokenOrder, request.param)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_position_is_visited_once(make, grid):
    order = make(*grid)
    assert order.grid == grid
    assert order.indices.dtype == torch.int64
    assert sorted(order.indices.tolist()) == list(range(grid[0] * grid[1]))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("leading", [(), (2,), (3, 2)])
def test_undo_and_apply_are_inverse(make, grid, leading):
    order, total = make(*grid), grid[0] * grid[1]
    tokens = torch.randint(1000, (*leading, total))
    assert torch.equal(order.undo(order.apply(tokens)), tokens)
    assert torch.equal(order.apply(order.undo(tokens)), tokens)
    assert torch.equal(order.apply(tokens.unflatten(-1, grid)).flatten(), order.apply(tokens).flatten())


@pytest.mark.parametrize("grid", GRIDS)
def test_indices_say_which_position_is_visited(make, grid):
    order = make(*grid)
    raster = torch.arange(grid[0] * grid[1])
    assert torch.equal(order.apply(raster), order.indices)
    assert torch.equal(order.apply(raster.view(1, *grid)), order.indices[None])
    assert torch.equal(order.undo(order.indices), raster)


def test_a_flat_batch_of_one_row_grids_stays_a_batch():
    """``(1, N)`` is both a batch of one flat sequence and a grid; a larger batch is only the first."""
    order, tokens = TokenOrder.raster(1, 5), torch.arange(10).view(2, 5)
    assert torch.equal(order.apply(tokens), tokens)
    assert order.apply(tokens[:1]).shape == order.undo(tokens[:1]).shape


def coarse_to_fine(rows, columns):
    """Even rows and columns first, then the other three parities; within each the same again."""
    if len(rows) * len(columns) <= 1:
        return list(itertools.product(rows, columns))
    parts = [(rows[i::2], columns[j::2]) for i in (0, 1) for j in (0, 1)]
    return [position for part in parts for position in coarse_to_fine(*part)]


def quadrants(top, left, size, *, grid):
    """Quadrants of a square of a power of two, each in the same way; what is outside the grid is passed over."""
    if top >= grid[0] or left >= grid[1]:
        return []
    if size == 1:
        return [(top, left)]
    half = size // 2
    corners = [(top + i, left + j) for i in (0, half) for j in (0, half)]
    return [position for corner in corners for position in quadrants(*corner, half, grid=grid)]


def raster_positions(path, grid):
    return [row * grid[1] + column for row, column in path]


@pytest.mark.parametrize("grid", GRIDS)
def test_z_curve_goes_quadrant_by_quadrant(grid):
    size = next(size for size in (1, 2, 4, 8, 16, 32) if size >= max(grid))
    expected = raster_positions(quadrants(0, 0, size, grid=grid), grid)
    assert TokenOrder.z_curve(*grid).indices.tolist() == expected


@pytest.mark.parametrize("grid", GRIDS)
def test_subsample_goes_from_coarse_to_fine(grid):
    expected = raster_positions(coarse_to_fine(range(grid[0]), range(grid[1])), grid)
    assert TokenOrder.subsample(*grid).indices.tolist() == expected


@pytest.mark.parametrize("grid", GRIDS)
def test_alternate_turns_at_every_rows_end(grid):
    rows = [range(row * grid[1], (row + 1) * grid[1]) for row in range(grid[0])]
    expected = [position for row, each in enumerate(rows) for position in (each[::-1] if row % 2 else each)]
    assert TokenOrder.alternate(*grid).indices.tolist() == expected


def walk_in(height, width):
    """From the bottom right corner up, then left, down, right: on until the next cell is taken, then a left turn."""
    row, column, turns = height - 1, width - 1, itertools.cycle([(-1, 0), (0, -1), (1, 0), (0, 1)])
    path, (down, right) = [(row, column)], next(turns)
    while len(path) < height * width:
        ahead = row + down, column + right
        if 0 <= ahead[0] < height and 0 <= ahead[1] < width and ahead not in path:
            row, column = ahead
            path.append(ahead)
        else:
            down, right = next(turns)
    return path


@pytest.mark.parametrize("grid", GRIDS)
def test_spirals_are_a_walk_that_turns_left_and_its_reverse(grid):
    expected = raster_positions(walk_in(*grid), grid)
    assert TokenOrder.spiral_in(*grid).indices.tolist() == expected
    assert TokenOrder.spiral_out(*grid).indices.tolist() == expected[::-1]


@given(st.permutations(range(12)))
def test_any_permutation_is_an_order(permutation):
    order = TokenOrder(torch.tensor(permutation), grid=(3, 4))
    tokens = torch.arange(24).view(2, 3, 4)
    sequence = order.apply(tokens)
    assert sequence.tolist() == [[row[position] for position in permutation] for row in tokens.flatten(1).tolist()]
    assert torch.equal(order.undo(sequence).unflatten(-1, order.grid), tokens)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.bool])
def test_anything_can_be_put_in_order(dtype):
    """Not tokens alone: masks and log-likelihoods too."""
    values = torch.tensor([[0, 1, 1], [1, 0, 1]], dtype=dtype)
    assert torch.equal(TokenOrder.alternate(2, 3).apply(values), values.flatten()[[0, 1, 2, 5, 4, 3]])


@pytest.mark.parametrize(
    "indices",
    [
        torch.arange(5),
        torch.tensor([0, 1, 2, 3, 4, 4]),
        torch.arange(1, 7),
        torch.arange(6).view(2, 3),
        torch.arange(6.0),
        torch.arange(6, dtype=torch.int32),
    ],
)
def test_indices_that_are_no_int64_permutation_are_an_error(indices):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        TokenOrder(indices, grid=(2, 3))
    assert str(error.value) == (
        "A TokenOrder names every position 0 ... 5 of its grid (2, 3) once, in an int64 tensor (T,), "
        f"but got {indices.dtype} of shape {tuple(indices.shape)} that does not."
    )


@pytest.mark.parametrize("grid", [(0, 3), (3, 0), (-2, -3)])
def test_an_empty_grid_is_an_error(make, grid):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        make(*grid)
    assert str(error.value) == f"A TokenOrder goes through a grid of at least 1 x 1, but got {grid[0]} x {grid[1]}."


@pytest.mark.parametrize(
    ("method", "shape"),
    [("apply", (4, 3, 2)), ("apply", (5,)), ("apply", ()), ("undo", (7,)), ("undo", (2, 2, 3)), ("undo", ())],
)
def test_tokens_of_another_size_are_an_error(method, shape):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        getattr(TokenOrder.raster(2, 3), method)(torch.zeros(shape))
    assert str(error.value) == (
        f"This TokenOrder goes through a grid (2, 3) of 6 tokens, but got shape {shape}. "
        f"Make one for this grid; undo takes sequences (..., 6)."
    )
