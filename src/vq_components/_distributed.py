"""The only file that names torch.distributed: every function does nothing on one process."""

import torch
import torch.distributed as dist
from torch import Tensor

# Asked at each call, never remembered: the process group may be created after the modules.


def _is_running() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of processes that train together, 1 without a process group."""
    return dist.get_world_size() if _is_running() else 1


def rank() -> int:
    """Number of this process in ``[0, world_size())``."""
    return dist.get_rank() if _is_running() else 0


def all_reduce_sum_(tensor: Tensor) -> None:
    """Replaces ``tensor`` by its sum over all processes."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)


def all_reduce_min_(tensor: Tensor) -> None:
    """Replaces ``tensor`` by its elementwise minimum over all processes."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of ``tensor``, or can be asked to."""
    return hasattr(tensor, "device_mesh")  # a DTensor, whose import takes long


def device() -> torch.device:
    """Where a tensor must be for this process to send it, if nothing else says so."""
    if _is_running() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
