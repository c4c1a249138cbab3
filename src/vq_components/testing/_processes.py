"""Forks of this process: two that train together, for a check that runs in one; and one that takes a share of work."""

import contextlib
import itertools
import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")

_PATIENCE = 120.0  # seconds for the last task of the fork


def _can_fork() -> bool:
    return "fork" in multiprocessing.get_all_start_methods()


def _started(context: ForkContext, *arguments: Any, daemon: bool) -> ForkProcess:
    """A fork that calls the first argument with the others."""
    run, *rest = arguments
    worker = context.Process(target=run, args=tuple(rest), daemon=daemon)
    with warnings.catch_warnings():  # that other threads are not copied: their locks are not taken
        warnings.simplefilter("ignore", DeprecationWarning)
        worker.start()
    return worker


def can_run_two() -> bool:
    """Whether this system can: it needs gloo and forks."""
    return dist.is_available() and dist.is_gloo_available() and _can_fork()


def in_two_processes(run: Callable[[int], Any], *, seconds: int = 60) -> tuple[Any, Any]:
    """``run(rank)`` in two processes of one gloo group; what both returned.

    The processes are forks, so ``run`` may use whatever is in memory. Results go through files.

    Raises:
        RuntimeError: if one of them fails or does not end in time.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        workers = [_started(context, _work, run, rank, folder, seconds, daemon=True) for rank in (0, 1)]
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


def run_all_of(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """What the tasks return, in their order.

    Where there is a second core for it, a fork begins at the other end, so long tasks belong there. What it does not
    bring back is done here: a task that ends the fork ends this process too, as it would without one.
    """
    results: dict[int, Result] = {}
    with contextlib.ExitStack() as stack:
        if _has_idle_core():
            tickets, bring = stack.enter_context(_helped(tasks))
            for index in itertools.count():
                if not os.read(tickets, 1):
                    break
                results[index] = tasks[index]()
            with contextlib.suppress(EOFError):
                results |= bring.recv() if bring.poll(_PATIENCE) else {}
    return [results[index] if index in results else task() for index, task in enumerate(tasks)]


def _has_idle_core() -> bool:
    """Accelerators are not for forks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _can_fork() and cores > 1 and not torch.accelerator.is_available()


@contextlib.contextmanager
def _helped(tasks: Sequence[Callable[[], Any]]) -> Iterator[tuple[int, Connection]]:
    """A pipe with one byte for each task, to be taken before it is run, and one from which the fork's results come."""
    context = multiprocessing.get_context("fork")
    tickets, issue = os.pipe()
    os.write(issue, bytes(len(tasks)))
    os.close(issue)
    bring, send = context.Pipe(duplex=False)
    worker = _started(context, _run_from_the_end, tasks, tickets, send, daemon=False)  # it may have forks of its own
    send.close()
    try:
        yield tickets, bring
    finally:
        worker.kill()
        worker.join()
        os.close(tickets)
        bring.close()


def _run_from_the_end(tasks: Sequence[Callable[[], Any]], tickets: int, send: Connection) -> None:
    torch.set_num_threads(1)  # threads for more are not copied
    results = {}
    for index in reversed(range(len(tasks) if _has_autograd() else 0)):
        if not os.read(tickets, 1):
            break
        results[index] = tasks[index]()
    send.send(results)


def _has_autograd() -> bool:
    """Not in a fork of a process whose first backward started threads, as one in a compiled graph does."""
    leaf = torch.zeros((), requires_grad=True)
    try:
        torch.autograd.backward(leaf.clone())
    except RuntimeError:
        return False
    return True
