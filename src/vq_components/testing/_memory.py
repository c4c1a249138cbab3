"""What a run keeps for its backward, and what it allocates."""

import contextlib
import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class _Packed:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Kept:
    """A tensor that an operation kept for its backward."""

    def __init__(self, packed: _Packed) -> None:
        self.numel = packed.tensor.numel()
        self._packed = weakref.ref(packed)

    @property
    def alive(self) -> bool:
        """Whether it is still kept; an operation whose result is dropped keeps nothing."""
        return self._packed() is not None


@contextlib.contextmanager
def kept_by_autograd() -> Iterator[list[Kept]]:
    """A list of what the operations inside keep for their backward, each as often as it is kept."""
    kept: list[Kept] = []

    def pack(tensor: Tensor) -> _Packed:
        packed = _Packed(tensor.detach())  # a result with its graph would keep itself
        kept.append(Kept(packed))
        return packed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
        yield kept


def largest_allocation(run: Callable[[], object]) -> int:
    """The most bytes that a run allocates at once."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    return max(int(event.nbytes()) for event in events if event.name() == "[memory]")
