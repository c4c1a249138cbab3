"""Checks of the order in which a prior visits the tokens of a grid."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ._compare import gap
from ._prior_subject import PRIOR, PriorSubject
from ._report import require, require_refused

Path = list[tuple[int, int]]
_GRIDS = ((1, 1), (1, 7), (5, 1), (2, 2), (3, 3), (4, 4), (5, 4), (3, 6), (8, 8), (2, 9), (16, 3))


def _grid_of(order: Any, prior: PriorSubject) -> tuple[int, int]:
    grid: Any = getattr(order, "grid", None) or prior.traits.grid
    require(grid is not None, "neither the order nor the traits tell its grid")
    height, width = grid
    return int(height), int(width)


def _has_order(subject: PriorSubject) -> bool:
    return subject.traits.order is not None


@PRIOR.check(
    rule="an order visits every position of its grid once, and is the same for grids and for their tokens in a row",
    cause="a path that ends early on a grid that is no square, or height and width swapped",
    applies=_has_order,
)
def check_order_is_a_permutation(prior: PriorSubject) -> None:
    """Guards that no token is lost or read twice, for batches, grids and flat sequences.

    Fails it::

        indices = torch.arange(width * width).view(width, width).T.flatten()  # of a grid that is higher than wide
    """
    order = prior.traits.order
    height, width = _grid_of(order, prior)
    raster = torch.arange(height * width)
    visited = order.apply(raster[None])[0]
    text = gap(visited.sort().values, raster)
    require(not text, f"positions in their order, sorted, compared with all positions: {text}")
    if hasattr(order, "indices"):
        text = gap(torch.as_tensor(order.indices), visited)
        require(not text, f"indices, compared with the positions that are visited: {text}")
    for leading in ((2,), (3, 2)):
        tokens = torch.randint(1000, (*leading, height, width))
        for shape, given in (("a grid", tokens), ("a flat grid", tokens.flatten(-2))):
            text = gap(order.apply(given), tokens.flatten(-2)[..., visited])
            require(not text, f"{shape} of shape {tuple(given.shape)}, in its order: {text}")


@PRIOR.check(
    rule="undo() gives back what apply() was given, bit by bit, and apply() what undo() was given",
    cause="the permutation used twice where its inverse is needed, which raster and alternate orders do not show",
    applies=_has_order,
)
def check_order_undo(prior: PriorSubject) -> None:
    """Guards the way back to the grid that a tokenizer decodes, for several shapes and types.

    Fails it::

        def undo(self, sequence):
            return sequence[..., self.indices]  # must be argsort(self.indices)
    """
    order = prior.traits.order
    height, width = _grid_of(order, prior)
    for leading in ((1,), (2,), (3, 2)):
        for dtype in (torch.int64, torch.int32, torch.float32):
            tokens = torch.randint(1000, (*leading, height * width)).to(dtype)
            before, where = tokens.clone(), f"{dtype} of shape {tuple(tokens.shape)}"
            there, back = order.apply(tokens), order.undo(tokens)
            require(not gap(tokens, before), f"{where}: the input was changed")
            require(there.dtype == back.dtype == dtype, f"{where} becomes {there.dtype}, and back {back.dtype}")
            for name, result in (("undo of apply", order.undo(there)), ("apply of undo", order.apply(back))):
                require(not gap(result, tokens), f"{where}, {name}: {gap(result, tokens)}")


def _raster(height: int, width: int) -> Path:
    return [(row, column) for row in range(height) for column in range(width)]


def _alternate(height: int, width: int) -> Path:
    return sorted(_raster(height, width), key=lambda place: (place[0], place[1] if place[0] % 2 == 0 else -place[1]))


def _z_curve(height: int, width: int) -> Path:
    """Each square of a power of two by its four quadrants, less what is outside."""

    def square(top: int, left: int, size: int) -> Path:
        if top >= height or left >= width:
            return []
        if size == 1:
            return [(top, left)]
        half = size // 2
        corners = [(top + down, left + right) for down in (0, half) for right in (0, half)]
        return [place for corner in corners for place in square(*corner, half)]

    size = 1
    while size < max(height, width):
        size *= 2
    return square(0, 0, size)


def _subsample(height: int, width: int) -> Path:
    """Even rows and columns first, then the three other parities; of each part its own even ones first."""

    def part(rows: Sequence[int], columns: Sequence[int]) -> Path:
        if len(rows) * len(columns) <= 1:
            return [(row, column) for row in rows for column in columns]
        parts = [(rows[down::2], columns[right::2]) for down in (0, 1) for right in (0, 1)]
        return [place for each in parts for place in part(*each)]

    return part(range(height), range(width))


def _spiral_in(height: int, width: int) -> Path:
    """A walk from the bottom right corner that goes up first, and turns left where it cannot go on."""
    place, (down, right) = (height - 1, width - 1), (-1, 0)
    path = [place]
    while len(path) < height * width:
        ahead = place[0] + down, place[1] + right
        if 0 <= ahead[0] < height and 0 <= ahead[1] < width and ahead not in path:
            place = ahead
            path.append(place)
        else:
            down, right = -right, down
    return path


def _spiral_out(height: int, width: int) -> Path:
    return _spiral_in(height, width)[::-1]


_PATHS = {
    "raster": _raster,
    "alternate": _alternate,
    "z_curve": _z_curve,
    "subsample": _subsample,
    "spiral_in": _spiral_in,
    "spiral_out": _spiral_out,
}


def _named(subject: PriorSubject) -> list[str]:
    return [name for name in _PATHS if callable(getattr(type(subject.traits.order), name, None))]


@PRIOR.check(
    rule="the well-known orders go their way on any grid: rows, rows in turn, Morton's curve, subsampling, spirals",
    cause="rows and columns exchanged, a bit too few for the longer side, or a spiral that turns the other way",
    applies=lambda subject: subject.traits.strict and _has_order(subject) and bool(_named(subject)),
)
def check_order_paths(prior: PriorSubject) -> None:
    """Guards the named orders by walks and recursions, on squares, oblong grids, and grids of one row or column.

    Fails it::

        digits = [(row >> bit & 1) + 2 * (column >> bit & 1) for bit in range(bits)]  # down before right
    """
    for name in _named(prior):
        for grid in _GRIDS:
            order = getattr(type(prior.traits.order), name)(*grid)
            require(tuple(order.grid) == grid, f"{name}{grid} says that its grid is {tuple(order.grid)}")
            visited = order.apply(torch.arange(grid[0] * grid[1])[None])[0]
            expected = torch.tensor([row * grid[1] + column for row, column in _PATHS[name](*grid)])
            text = gap(visited, expected)
            step = int((visited != expected).nonzero()[0]) if text and visited.shape == expected.shape else 0
            require(not text, f"{name}{grid}, from step {step} on: {text}")


@PRIOR.check(
    rule="an order refuses what is no permutation of its grid, and tokens of another grid",
    cause="indices that are taken as they come, or a sequence that is cut to the number of positions",
    applies=lambda subject: subject.traits.strict and _has_order(subject),
)
def check_order_refuses(prior: PriorSubject) -> None:
    """Guards against an order that was made for another grid, and against positions that are named twice or never.

    Fails it::

        return tokens[..., self.indices]  # a longer sequence loses its end
    """
    order = prior.traits.order
    height, width = _grid_of(order, prior)
    total, indices = height * width, torch.as_tensor(order.indices)
    twice, beyond, shifted = indices.clone(), indices.clone(), indices + 1
    twice[indices == total - 1], beyond[indices == 0] = 0, total
    build: Any = type(order)
    grid = (height, width)
    cases = {
        "a position that is named twice": partial(build, twice, grid=grid),
        "a position beyond the grid": partial(build, beyond, grid=grid),
        "positions that start from 1": partial(build, shifted, grid=grid),
        "positions that start from -1": partial(build, indices - 1, grid=grid),
        "a position too few": partial(build, indices[indices < total - 1], grid=grid),
        "a larger grid": partial(build, indices, grid=(height + 1, width)),
        "floating-point positions": partial(build, indices.float(), grid=grid),
        "positions in two dimensions": partial(build, indices[None], grid=grid),
        "a sequence that is too long": partial(order.apply, torch.zeros(2, total + 1)),
        "a sequence that is too short": partial(order.apply, torch.zeros(2, total - 1)),
        "a grid that is turned": partial(order.apply, torch.zeros(2, total, 1)),
        "a grid to undo": partial(order.undo, torch.zeros(2, total, 2)),
        "a longer sequence to undo": partial(order.undo, torch.zeros(2, total + 1)),
        "a number": partial(order.undo, torch.zeros(())),
    }
    for name in _named(prior):
        for empty in ((0, 3), (3, 0), (-1, -2)):
            cases[f"{name}{empty}"] = partial(getattr(build, name), *empty)
    require_refused(cases)
