"""Sampling of images that are larger than what the prior was trained on.

Example:
    >>> from vq_components import ConditionalPrior, MinGPT, generate_windows
    >>> prior = ConditionalPrior(MinGPT(65, 16, n_layer=1, n_head=2, n_embd=32), image_vocab=64)
    >>> generate_windows(prior, grid=(6, 10), window=(4, 4)).shape
    torch.Size([1, 6, 10])
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ._conditional import ConditionalPrior
from ._conditions import Window
from ._mingpt import MinGPT
from ._sampling import (
    Progress,
    Reader,
    Sampling,
    check_logits,
    draw_uniform,
    find_batch_size,
    sampling_mode,
    thin_transformer,
    unpack_model,
    with_progress,
)
from ._thin import ThinTransformer

Position = tuple[int, int]


@dataclass(frozen=True)
class _Plan:
    """Which window each position of a grid is sampled in, and which positions are sampled together."""

    grid: tuple[int, int]
    window: tuple[int, int]  # not larger than the grid

    def window_of(self, row: int, column: int) -> Window:
        """The window that has the position in its middle, as far as the grid's borders allow."""
        top, left = (
            min(max(place - size // 2, 0), whole - size)
            for place, whole, size in zip((row, column), self.grid, self.window, strict=True)
        )
        return Window(top, left, *self.window, self.grid)

    def stands_still(self, window: Window) -> bool:
        """Whether the window is at the left or right border, where it serves several columns."""
        return window.left in (0, self.grid[1] - self.window[1])

    def steps(self) -> list[list[Position]]:
        """Positions that do not depend on each other, step by step.

        A window reaches to its width less one to the right, of the row above, at the left border. So each row follows
        the one above it a window's width behind.
        """
        (height, width), lag = self.grid, self.window[1]
        return [
            [(row, step - lag * row) for row in range(height) if 0 <= step - lag * row < width]
            for step in range(width + lag * (height - 1))
        ]


@dataclass
class _Border:
    """What has been read of the window that stands at the left or right border."""

    reader: Reader
    top: int


@dataclass
class _Canvas:
    """The tokens that have been sampled, and what the next ones are sampled from."""

    prior: ConditionalPrior
    gpt: MinGPT
    plan: _Plan
    tokens: Tensor  # (B, H, W)
    conditions: Sequence[Tensor]
    guided: bool
    thin: ThinTransformer | None = None
    borders: dict[int, _Border] = field(default_factory=dict)

    def sequence(self, row: int, column: int) -> Tensor:
        """What comes before a position in its window, conditions first: ``(B, P + n)``; twice if guided."""
        window = self.plan.window_of(row, column)
        block = self.tokens[:, window.top : row + 1, window.left : window.left + window.width].flatten(1)
        before = block[:, : (row - window.top) * window.width + column - window.left]
        prefix = self.prior.prefixes(before, self.conditions, guided=self.guided, window=window)
        return torch.cat([prefix, before.repeat(1 + self.guided, 1)], dim=1)

    def logits_at_border(self, row: int, column: int) -> Tensor:
        """Logits ``(B, V)`` of a position whose window stands still from column to column."""
        window = self.plan.window_of(row, column)
        sequence = self.sequence(row, column)
        if window.left not in self.borders:
            length = sequence.shape[1] + window.height * window.width
            reader = Reader(self.gpt, batch_size=len(sequence), length=length, thin=self.thin)
            self.borders[window.left] = _Border(reader, window.top)
        border = self.borders[window.left]
        if border.top != window.top:
            border.reader.cache.clear()
            border.top = window.top
        return border.reader.logits(sequence)

    def logits_between(self, positions: list[Position]) -> Iterator[Tensor]:
        """Logits ``(B, V)`` of positions that each have a window of their own, in one batch."""
        if not positions:
            return
        sequences = [self.sequence(*position) for position in positions]
        lengths = [sequence.shape[1] for sequence in sequences]
        # Padded behind their ends, where nothing looks.
        padded = [F.pad(each, (0, max(lengths) - each.shape[1])) for each in sequences]
        features = self.gpt.features(torch.cat(padded)).chunk(len(positions))
        for each, length in zip(features, lengths, strict=True):
            yield self.gpt.head(each[:, length - 1])

    def logits(self, positions: list[Position]) -> Iterator[tuple[Position, Tensor]]:
        """Each position and its logits ``(B, V)``."""
        still = [position for position in positions if self.plan.stands_still(self.plan.window_of(*position))]
        moving = [position for position in positions if position not in still]
        yield from ((position, self.logits_at_border(*position)) for position in still)
        yield from zip(moving, self.logits_between(moving), strict=True)


def generate_windows(
    model: ConditionalPrior,
    *,
    grid: tuple[int, int],
    window: tuple[int, int],
    batch_size: int | None = None,
    conditions: Sequence[Tensor] = (),
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    guidance: float = 1.0,
    allowed_tokens: Tensor | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Samples grids ``(B, H, W)`` of any size with a prior of smaller ones, in a sliding window (Esser et al. 2021).

    Each token is sampled given those before it, in raster order, in a window ``start = i - size // 2`` along each side,
    clamped to the grid. The result is that of one token after the other, but rows run side by side, each a window's
    width behind the one above, in ``W + w (H - 1)`` steps; only what is before a position is computed, and only once
    where the window stands still, at the left and right borders.

    Args:
        model: a prior over grids in raster order.
        grid: height and width of the result, in tokens.
        window: height and width of the training grids; along a side that is shorter, the grid's.
        batch_size: number of grids, where the conditions do not tell it; 1 unless told.
        conditions: one value for each condition that takes one, for the whole grid: :class:`SpatialTokens` slide along,
            and are ``(B, h, w)``; :class:`Coordinates` follow the window, and are left out here.
        temperature: as in :func:`generate`.
        top_k: as in :func:`generate`.
        top_p: as in :func:`generate`.
        min_p: as in :func:`generate`.
        guidance: as in :func:`generate`.
        allowed_tokens: as in :func:`generate`.
        generator: as in :func:`generate`; a position's random number does not depend on the order of sampling.
        progress: as in :func:`generate`.

    Raises:
        ValueError: if window and conditions exceed ``block_size``, ``n_unmasked`` exceeds the conditions, or logits
            become NaN.
        TypeError: if the model is of another class, a size is no pair, ``generator`` is none, or ``progress`` is no
            function.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, guidance, allowed_tokens)
    return _generate_windows(
        model, sampling, conditions, generator, progress, grid=grid, window=window, batch_size=batch_size
    )


def _generate_windows(
    model: ConditionalPrior,
    sampling: Sampling,
    conditions: Sequence[Tensor],
    generator: torch.Generator | None,
    progress: Progress | None,
    *,
    grid: tuple[int, int],
    window: tuple[int, int],
    batch_size: int | None,
) -> Tensor:
    prior, gpt = unpack_model(model)
    if prior is None:
        raise TypeError("generate_windows needs a ConditionalPrior, which knows how an image starts. Wrap the MinGPT.")
    for name, size in (("grid", grid), ("window", window)):
        if not isinstance(size, Sequence) or len(size) != 2:
            raise TypeError(f"{name} is a pair, height and width in tokens, but got {size!r}. Pass {name}=(4, 4).")
    if min(*grid, *window) < 1:
        raise ValueError(f"generate_windows needs positive sizes, but got grid={grid} and window={window}.")
    batch_size = find_batch_size(batch_size, None, None, conditions, default=1)
    sampling.check(prior, vocab_size=prior.image_vocab, batch_size=batch_size)
    plan = _Plan(grid, (min(window[0], grid[0]), min(window[1], grid[1])))
    device = gpt.tok_emb.weight.device
    tokens = torch.zeros(batch_size, *grid, dtype=torch.int64, device=device)
    canvas = _Canvas(prior, gpt, plan, tokens, conditions, guided=sampling.guided)
    _check_window(gpt, canvas.sequence(0, 0).shape[1], plan.window)
    uniform = draw_uniform(batch_size, *grid, generator=generator, device=device)
    with sampling_mode(model):
        canvas.thin = thin_transformer(gpt, batch_size * (1 + sampling.guided))
        for positions in with_progress(plan.steps(), progress):
            for (row, column), logits in canvas.logits(positions):
                tokens[:, row, column] = sampling.choose(logits[:, : prior.image_vocab], uniform[:, row, column])
    check_logits(logits)
    return tokens


def _check_window(gpt: MinGPT, first: int, window: tuple[int, int]) -> None:
    """Raises unless a window of tokens, less its last one, fits behind ``first`` tokens of the conditions."""
    length = first + window[0] * window[1] - 1
    if length > gpt.block_size:
        raise ValueError(
            f"A window of {window[0]} x {window[1]} with its conditions needs {length} positions, but the model's "
            f"block_size is {gpt.block_size}. Pass the size of the grids that it was trained on."
        )
