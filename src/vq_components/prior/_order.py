"""Orders in which the tokens of an image are visited."""

import torch
from torch import Tensor


class TokenOrder:
    """A way through a grid of tokens, and back.

    Args:
        indices: a permutation of ``0 ... T - 1``, ``(T,)`` ``int64``: entry ``t`` is the raster position that is
            visited at step ``t``. The class methods below make the well-known ones.
        grid: height and width of the grid, with ``T = height * width``.

    Raises:
        ValueError: if ``indices`` are no permutation of the grid's positions.

    References:
        Esser, Rombach, Ommer (2021), "Taming Transformers for High-Resolution Image Synthesis", on the ordering of
        image representations: row major is :meth:`raster`; the others have its names. Where it has a square grid of a
        certain size only, the orders here go on to any grid.

    Example:
        >>> order = TokenOrder.alternate(2, 3)
        >>> order.indices
        tensor([0, 1, 2, 5, 4, 3])
        >>> sequence = order.apply(torch.tensor([[[10, 11, 12], [13, 14, 15]]]))
        >>> sequence
        tensor([[10, 11, 12, 15, 14, 13]])
        >>> order.undo(sequence)
        tensor([[10, 11, 12, 13, 14, 15]])
    """

    def __init__(self, indices: Tensor, *, grid: tuple[int, int]) -> None:
        raster = torch.arange(grid[0] * grid[1], device=indices.device)
        if indices.dtype != torch.int64 or not torch.equal(indices.sort().values, raster):
            raise ValueError(
                f"A TokenOrder names every position 0 ... {grid[0] * grid[1] - 1} of its grid {grid} once, in an int64 "
                f"tensor (T,), but got {indices.dtype} of shape {tuple(indices.shape)} that does not."
            )
        self.indices = indices
        self.grid = (grid[0], grid[1])
        self._steps = indices.argsort()

    def apply(self, tokens: Tensor) -> Tensor:
        """The sequence of visited tokens.

        Args:
            tokens: a grid ``(..., H, W)``, or the same flat in raster order, ``(..., T)``.

        Returns:
            ``(..., T)``, where entry ``t`` is the token at raster position ``indices[t]``.

        Raises:
            ValueError: if the last dimensions are neither the grid nor its size.
        """
        # (1, T) is a batch of one flat sequence rather than a grid of one row.
        if tuple(tokens.shape[-2:]) == self.grid and (tokens.ndim > 2 or self.grid[0] > 1):
            tokens = tokens.flatten(-2)
        return self._select(tokens, self.indices)

    def undo(self, sequence: Tensor) -> Tensor:
        """The tokens of :meth:`apply` back in raster order, ``(..., T)`` in and out.

        ``order.undo(sequence).unflatten(-1, order.grid)`` is the grid that a tokenizer decodes.

        Raises:
            ValueError: if there are not ``T`` tokens.
        """
        return self._select(sequence, self._steps)

    def _select(self, tokens: Tensor, indices: Tensor) -> Tensor:
        if tokens.ndim == 0 or tokens.shape[-1] != len(indices):
            raise ValueError(
                f"This TokenOrder goes through a grid {self.grid} of {len(indices)} tokens, but got shape "
                f"{tuple(tokens.shape)}. Make one for this grid; undo takes sequences (..., {len(indices)})."
            )
        return tokens[..., indices.to(tokens.device)]

    @classmethod
    def raster(cls, height: int, width: int) -> "TokenOrder":
        """Row by row, each from left to right."""
        return cls(torch.arange(_size(height, width)), grid=(height, width))

    @classmethod
    def alternate(cls, height: int, width: int) -> "TokenOrder":
        """Row by row, every second one from right to left."""
        grid = torch.arange(_size(height, width)).view(height, width)
        grid[1::2] = grid[1::2].flip(1)
        return cls(grid.flatten(), grid=(height, width))

    @classmethod
    def z_curve(cls, height: int, width: int) -> "TokenOrder":
        """Quadrant by quadrant, each of them likewise: Morton's order."""
        digits = _quadrant_digits(height, width)
        return cls(_order_by(digits[::-1]), grid=(height, width))

    @classmethod
    def subsample(cls, height: int, width: int) -> "TokenOrder":
        """Every second row and column first, of which again every second one first, and so on: coarse to fine."""
        return cls(_order_by(_quadrant_digits(height, width)), grid=(height, width))

    @classmethod
    def spiral_in(cls, height: int, width: int) -> "TokenOrder":
        """From the bottom right corner up and around, counterclockwise, to the middle."""
        grid = torch.arange(_size(height, width)).view(height, width)
        path = []
        while grid.numel() > 0:  # the last column from below, then the rest, turned so that it has a new last column
            path.append(grid[:, -1].flip(0))
            grid = grid[:, :-1].rot90(-1)
        return cls(torch.cat(path), grid=(height, width))

    @classmethod
    def spiral_out(cls, height: int, width: int) -> "TokenOrder":
        """From the middle around, clockwise, to the bottom right corner."""
        return cls(cls.spiral_in(height, width).indices.flip(0), grid=(height, width))


def _size(height: int, width: int) -> int:
    if height < 1 or width < 1:
        raise ValueError(f"A TokenOrder goes through a grid of at least 1 x 1, but got {height} x {width}.")
    return height * width


def _quadrant_digits(height: int, width: int) -> list[Tensor]:
    """Of each raster position the quadrants 0 to 3 that it is in, from the finest to the coarsest, ``(T,)`` each."""
    position = torch.arange(_size(height, width))
    row, column = position // width, position % width
    return [(row >> bit & 1) * 2 + (column >> bit & 1) for bit in range(max(height, width).bit_length())]


def _order_by(digits: list[Tensor]) -> Tensor:
    """Raster positions, ordered by their first digits, then by their second ones, and so on."""
    key = torch.zeros((), dtype=torch.int64)
    for digit in digits:
        key = key * 4 + digit
    return key.argsort(stable=True)
