"""Two processes that train together, for a check that runs in one."""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def can_run_two() -> bool:
    """Whether this system can: it needs gloo and forks."""
    return dist.is_available() and dist.is_gloo_available() and "fork" in multiprocessing.get_all_start_methods()


def in_two_processes(run: Callable[[int], Any], *, seconds: int = 60) -> tuple[Any, Any]:
    """``run(rank)`` in two processes of one gloo group; what both returned.

    The processes are forks, so ``run`` may use whatever is in memory. Results go through files.

    Raises:
        RuntimeError: if one of them fails or does not end in time.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        workers = [context.Process(target=_work, args=(run, rank, folder, seconds), daemon=True) for rank in (0, 1)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(seconds)
        alive = [worker for worker in workers if worker.is_alive()]
        for worker in alive:
            worker.kill()
            worker.join()
        results = []
        for rank in (0, 1):
            error = Path(folder, f"error{rank}")
            if error.exists():
                raise RuntimeError(f"process {rank} failed: {error.read_text(encoding='utf-8').splitlines()[-1]}")
        if alive:
            raise RuntimeError(f"{len(alive)} of 2 processes did not end within {seconds} s: they wait for each other")
        for rank in (0, 1):
            results.append(torch.load(Path(folder, f"result{rank}"), weights_only=False))
        return results[0], results[1]


def _work(run: Callable[[int], Any], rank: int, folder: str, seconds: int) -> None:
    torch.set_num_threads(1)
    try:
        address = f"file://{Path(folder, 'store')}"
        dist.init_process_group(
            "gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=seconds // 2)
        )
        torch.save(run(rank), Path(folder, f"result{rank}"))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        Path(folder, f"error{rank}").write_text(traceback.format_exc(), encoding="utf-8")
