"""Keys and values of the positions that a transformer has seen: kept outside the module, in the caller's hands."""

import torch
from torch import Tensor


class KeyValueCache:
    """Preallocated keys and values of every layer, filled from the front.

    Args:
        keys: ``(L, B, heads, T, D)``, for ``L`` layers and at most ``T`` positions.
        values: of the same shape.

    Attributes:
        length: number of positions that are filled.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the keys and values ``(B, heads, t, D)`` of the next positions; returns those of all up to them.

        The length stays: it grows by :meth:`advance`, once all layers have stored theirs.
        """
        end = self.length + keys.shape[2]
        filled = []
        for buffer, new in ((self.keys[layer], keys), (self.values[layer], values)):
            filled.append(buffer.narrow(2, 0, end))
            buffer.narrow(2, self.length, new.shape[2]).copy_(new)
        return filled[0], filled[1]

    def advance(self, positions: int) -> None:
        """Counts the positions that all layers have stored."""
        self.length += positions

    def clear(self) -> None:
        """Forgets all positions."""
        self.length = 0

    @property
    def capacity(self) -> int:
        """Number of positions that fit."""
        return self.keys.shape[3]

    @classmethod
    def empty(cls, *shape: int, like: Tensor) -> "KeyValueCache":
        """A cache of shape ``(L, B, heads, T, D)``, on the device and in the dtype of ``like``."""
        return cls(*(torch.empty(shape, dtype=like.dtype, device=like.device) for _ in range(2)))
