"""What a run keeps for its backward, and what it allocates."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def kept_sizes() -> Iterator[list[int]]:
    """A list of the numbers of elements of the tensors that autograd keeps inside, one for each time."""
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield sizes


def largest_allocation(run: Callable[[], object]) -> int:
    """The most bytes that a run allocates at once."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    return max(int(event.nbytes()) for event in events if event.name() == "[memory]")
