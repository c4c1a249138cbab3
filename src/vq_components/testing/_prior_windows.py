"""Checks of sampling by windows: images that are larger than those of the training."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._compare import gap, modes_of, require_modes, state_difference, state_of
from ._prior_conditional import is_own
from ._prior_sampling import filtered, without_conditions
from ._prior_subject import PRIOR, PriorSubject, Values, takes_settings
from ._report import refused, require, require_refused

Choose = Callable[[Tensor, int], Tensor]
Grid = tuple[int, int]


def _has_windows(subject: PriorSubject) -> bool:
    return subject.adapter.windows is not None and subject.traits.grid is not None and is_own(subject)


def _window_of(place: int, whole: int, size: int) -> int:
    return min(max(place - size // 2, 0), whole - size)


def _slow_windows(
    prior: PriorSubject, module: Any, grid: Grid, values: Values, choose: Choose, batch: int, weight: float = 1.0
) -> Tensor:
    """One token after the other, each given those before it in its window; with guidance of a weight."""
    height, width = (min(a, b) for a, b in zip(prior.traits.grid or grid, grid, strict=True))
    tokens = torch.zeros(batch, *grid, dtype=torch.int64)
    for row in range(grid[0]):
        for column in range(grid[1]):
            top, left = _window_of(row, grid[0], height), _window_of(column, grid[1], width)
            place = (row - top) * width + column - left
            window = tokens[:, top : top + height, left : left + width].flatten(1)
            local = _local(module, values, (top, left), (height, width), grid, batch)
            logits = prior.logits(module, window, local)[:, place].detach()
            if weight != 1:
                with without_conditions(module):
                    free = prior.logits(module, window, local)[:, place].detach()
                logits = free + weight * (logits - free)
            tokens[:, row, column] = choose(logits, row * grid[1] + column)
    return tokens


def _local(module: Any, values: Values, start: Grid, size: Grid, grid: Grid, batch: int) -> Values:
    """The conditions' values in a window."""
    iterator, local = iter(values), []
    for condition in module.conditions:
        if not condition.takes_value:
            continue
        if type(condition).__name__ == "Coordinates":
            where = [s / max(whole - part, 1) for s, whole, part in zip(start, grid, size, strict=True)]
            local.append(torch.tensor(where).expand(batch, 2))
            continue
        value = next(iterator)
        local.append(_under(value, start, size, grid) if type(condition).__name__ == "SpatialTokens" else value)
    return tuple(local)


def _under(value: Tensor, start: Grid, size: Grid, grid: Grid) -> Tensor:
    rows, columns = (
        slice(begin * cells // whole, begin * cells // whole + length * cells // whole)
        for begin, length, cells, whole in zip(start, size, value.shape[1:], grid, strict=True)
    )
    return value[:, rows, columns]


def _whole_values(prior: PriorSubject, module: Any, grid: Grid, batch: int) -> Values | None:
    """Values for a larger grid, spatial ones in their proportion to it; None if it has no whole number of cells."""
    values = []
    conditions = [condition for condition in module.conditions if condition.takes_value]
    for condition, value in zip(conditions, prior.values(batch), strict=True):
        name = type(condition).__name__
        if name == "SpatialTokens":
            trained = prior.traits.grid or grid
            cells = [n * whole / side for n, whole, side in zip(value.shape[1:], grid, trained, strict=True)]
            covered = [n * min(whole, side) / whole for n, whole, side in zip(cells, grid, trained, strict=True)]
            if not all(number == int(number) for number in cells + covered):
                return None
            value = torch.randint(int(value.max()) + 1, (batch, *map(int, cells)))
        if name != "Coordinates":
            values.append(value)
    return tuple(values)


def _invert(uniform: Tensor, settings: dict[str, Any], logits: Tensor, position: int) -> Tensor:
    """The first token whose cumulative probability is above the position's number."""
    allowed = settings.get("allowed_tokens")
    if not settings:
        cumulative = logits.double().softmax(dim=1).cumsum(dim=1)
        return (cumulative <= uniform[:, position, None]).sum(dim=1).clamp(max=logits.shape[1] - 1)
    rows = []
    for row, each in enumerate(logits):
        mine = settings | ({} if allowed is None else {"allowed_tokens": allowed.expand(len(logits), -1)[row]})
        rows.append(int((filtered(each, mine).cumsum(dim=0) <= uniform[row, position]).sum()))
    return torch.tensor(rows).clamp(max=logits.shape[1] - 1)


def _compare(
    prior: PriorSubject, module: Any, grid: Grid, values: Values, batch: int, settings: dict[str, Any]
) -> None:
    """Raises unless windows give what the plain loop gives: greedily, or at the same random numbers."""
    if prior.adapter.windows is None or prior.traits.grid is None:
        return
    uniform = torch.rand(batch, *grid, generator=torch.Generator().manual_seed(3)).double().flatten(1)
    plain = {name: value for name, value in settings.items() if name != "guidance"}
    choose: Choose = partial(_invert, uniform, plain)
    if settings.get("temperature") == 0:
        choose = lambda logits, _: logits.argmax(dim=1)  # noqa: E731
    else:
        settings = settings | {"generator": torch.Generator().manual_seed(3)}
    expected = _slow_windows(prior, module, grid, values, choose, batch, settings.get("guidance", 1.0))
    tokens = prior.adapter.windows(module, grid, prior.traits.grid, batch, values, settings)
    text = gap(tokens, expected)
    require(not text, f"{list(settings)}, a grid {grid} in windows of {prior.traits.grid}, {batch} images: {text}")


@PRIOR.check(
    rule="sampling by windows gives what one token after the other gives, each in the window around it",
    cause="rows that run too close behind each other, a window that is off by one, or conditions that do not slide",
    applies=_has_windows,
)
def check_windows(prior: PriorSubject) -> None:
    """Guards images larger than those of the training, by a plain loop, for several sizes and batches.

    Spatial conditions are as fine or as coarse as the subject's values are next to its grid.

    Fails it::

        left = column - width // 2 + 1
    """
    module, (height, width) = prior.excited(), prior.traits.grid or (1, 1)
    sizes = [(height + 2, width + 3), (height, 3 * width), (2 * height, width), (max(height - 1, 1), width + 1)]
    sizes += [] if module.gpt.n_unmasked > 0 else [(1, 1)]  # there may be too few conditions to see each other
    chosen = [grid for grid in sizes if _whole_values(prior, module, grid, 2) is not None]
    if len(chosen) < 3:
        chosen += [(2 * height, 2 * width)]
    for number, grid in enumerate(chosen):
        greedy: dict[str, Any] = {"temperature": 0.0}
        for batch, settings in ((2, {}), (2, greedy), (18, greedy)):
            if not settings or number == (0 if batch == 2 else len(chosen) - 1):
                values = _whole_values(prior, module, grid, batch)
                _compare(prior, module, grid, values or (), batch, settings)


@PRIOR.check(
    rule="sampling by windows has the settings of sampling: temperature, filters, allowed tokens, guidance",
    cause="settings that are handed on in another order, or the images without conditions given other tokens",
    applies=_has_windows,
)
def check_windows_settings(prior: PriorSubject) -> None:
    """Guards each setting on its own, at the random numbers of the plain loop.

    Fails it::

        return sample_windows(model, top_k, min_p, top_p)  # where top_p comes before min_p
    """
    module, (height, width) = prior.excited(), prior.traits.grid or (1, 1)
    size = prior.traits.vocab_size
    for grid in ((height + 1, width + 1), (height, width + 2), (2 * height, 2 * width)):
        values = _whole_values(prior, module, grid, 3)
        if values is not None:
            break
    allowed = torch.arange(size) % 3 != 1
    trials: list[dict[str, Any]] = [{"temperature": 0.6, "top_p": 0.6}, {"top_k": 2}, {"top_p": 0.45}, {"min_p": 0.55}]
    trials += [{"allowed_tokens": torch.stack([allowed, ~allowed, allowed.roll(1)])}]
    trials += [{"guidance": 2.5}] if prior.traits.guided else []
    for settings in trials:
        if takes_settings(prior, settings):
            _compare(prior, module, grid, values or (), 3, settings)


@PRIOR.check(
    rule="sampling by windows restores every mode, changes no state, and shows its progress",
    cause="a model that stays in evaluation, or steps that are counted otherwise",
    applies=lambda subject: _has_windows(subject) and subject.traits.strict,
)
def check_windows_manners(prior: PriorSubject) -> None:
    """Guards modes and state, after an error as well, the number of steps, and the default batch.

    Fails it::

        model.eval()  # and training goes on without dropout
    """
    module, (height, width) = prior.excited(), prior.traits.grid or (1, 1)
    window, grid = (height, width), (2 * height, 2 * width)
    values, windows = _whole_values(prior, module, grid, 1) or (), prior.adapter.windows
    if windows is None:
        return
    for number, part in enumerate(module.modules()):
        part.training = number % 3 != 1
    modes, state, steps = modes_of(module), state_of(module), []

    def counted(given: Iterable[Any]) -> Iterator[Any]:
        for step in given:
            steps.append(step)
            yield step

    tokens = windows(module, grid, window, None, values, {"progress": counted})
    require(tuple(tokens.shape) == (1, *grid), f"without a batch size, the tokens' shape is {tuple(tokens.shape)}")
    require(tokens.dtype == torch.int64, f"tokens are {tokens.dtype}")
    expected = grid[1] + width * (grid[0] - 1)
    require(len(steps) == expected, f"progress saw {len(steps)} steps instead of W + w (H - 1) = {expected}")
    with contextlib.suppress(ZeroDivisionError):
        windows(module, grid, window, None, values, {"progress": lambda given: (1 // 0 for _ in given)})
    require_modes(module, modes, "after sampling")
    require(not state_difference(state_of(module), state), "the state changed")


@PRIOR.check(
    rule="sampling by windows refuses sizes and conditions that do not fit, and logits that are NaN",
    cause="a size that is not looked at, or a condition of which a window covers no whole number of cells",
    applies=lambda subject: _has_windows(subject) and subject.traits.strict,
)
def check_windows_refuses(prior: PriorSubject) -> None:
    """Guards against mistakes in sizes and conditions, which would give an image of something else.

    Fails it::

        value = value.flatten(1)[:, : height * width]  # whatever the condition's grid is
    """
    module, (height, width) = prior.excited(), prior.traits.grid or (1, 1)
    window, grid = (height, width), (2 * height, 2 * width)
    values, windows = _whole_values(prior, module, grid, 1) or (), prior.adapter.windows
    if windows is None:
        return
    call = partial(windows, module)
    cases: dict[str, Callable[[], object]] = {
        "a larger window": partial(call, grid, (height + 1, width), 1, values, {}),
        "a window that is one column wider": partial(call, grid, (height, width + 1), 1, values, {}),
        "a grid without rows": partial(call, (0, width), window, 1, values, {}),
        "a window without columns": partial(call, grid, (height, 0), 1, values, {}),
        "a number as grid": partial(call, height, window, 1, values, {}),
        "three sizes": partial(call, (*grid, 2), window, 1, values, {}),
        "a transformer alone": partial(windows, module.gpt, grid, window, 1, values, {}),
        "a value too many": partial(call, grid, window, 1, (*values, torch.zeros(1)), {}),
        "a seed as generator": partial(call, grid, window, 1, values, {"generator": 3}),
        "top_k of 0": partial(call, grid, window, 1, values, {"top_k": 0}),
    }
    for number, value in enumerate(values):
        if value.ndim == 3:
            odd = {"a cell too many": value[:, [0, *range(value.shape[1])]], "a flat grid": value.flatten(1)}
            for what, wrong in odd.items():
                others = (*values[:number], wrong, *values[number + 1 :])
                cases[f"{what} as a condition"] = partial(call, grid, window, 1, others, {})
    if values:
        cases["another batch size"] = partial(call, grid, window, 2, values, {})
    require_refused(cases)
    with torch.no_grad():
        module.gpt.head.weight[0] = torch.nan
    require(refused(partial(call, grid, window, 1, values, {}), ValueError), "logits that are NaN are sampled from")
