"""Work that is shared with a fork of the process."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vq_components.testing import CheckFailure, _processes
from vq_components.testing._processes import run_all_of

HERE = os.getpid()

needs_fork = pytest.mark.skipif(not _processes._has_idle_core(), reason="needs a second core, and forks")


def sleeper(name: str, seconds: float = 0.2) -> Callable[[], tuple[str, int]]:
    def run() -> tuple[str, int]:
        time.sleep(seconds)
        return name, os.getpid()

    return run


@needs_fork
def test_results_keep_the_order_of_the_tasks_and_two_processes_share_them() -> None:
    results = run_all_of([sleeper(name) for name in "abcdef"])
    assert [name for name, _ in results] == list("abcdef")
    processes = [process for _, process in results]
    assert len(set(processes)) == 2
    assert processes[0] == HERE != processes[-1]


@needs_fork
def test_the_fork_takes_what_is_left_of_a_long_task_here() -> None:
    results = run_all_of([sleeper("long", 1.0), *(sleeper(name, 0.01) for name in "abcdef")])
    assert [process == HERE for _, process in results] == [True] + 6 * [False]


@pytest.mark.parametrize("cores", [False, True])
def test_each_task_is_run_once(cores: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_processes, "_has_idle_core", lambda: cores and _processes._can_fork())

    def write(index: int) -> int:
        with (tmp_path / str(index)).open("a") as file:
            file.write("x")
        return index

    assert run_all_of([lambda index=index: write(index) for index in range(40)]) == list(range(40))
    assert [(tmp_path / str(index)).read_text() for index in range(40)] == 40 * ["x"]
    assert run_all_of([]) == []


def test_what_a_fork_that_dies_had_taken_is_done_here() -> None:
    def die_elsewhere() -> int:
        if os.getpid() != HERE:
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    assert run_all_of([sleeper("a"), die_elsewhere])[1] == HERE


def test_a_fork_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_processes, "_PATIENCE", 0.2)

    def wait_elsewhere() -> int:
        if os.getpid() != HERE:
            time.sleep(60)
        return os.getpid()

    start = time.monotonic()
    assert run_all_of([sleeper("a"), wait_elsewhere])[1] == HERE
    assert time.monotonic() - start < 20


def test_an_error_here_ends_the_fork_and_closes_its_pipes() -> None:
    def wait() -> None:
        time.sleep(60)

    def fail() -> None:
        time.sleep(0.2)
        raise LookupError("of a task")

    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir())) if folder.exists() else 0
    start = time.monotonic()
    with pytest.raises(LookupError, match="of a task"):
        run_all_of([fail, wait])
    assert time.monotonic() - start < 20
    assert (len(list(folder.iterdir())) if folder.exists() else 0) == before


@needs_fork
def test_a_fork_without_autograd_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*tensors: object) -> None:
        raise RuntimeError("Unable to handle autograd's threading in combination with fork-based multiprocessing")

    monkeypatch.setattr(torch.autograd, "backward", refuse)
    assert {process for _, process in run_all_of([sleeper(name) for name in "abc"])} == {HERE}


@needs_fork
def test_a_failure_that_a_fork_found_arrives_whole() -> None:
    def find() -> CheckFailure | None:
        found = CheckFailure("check_shapes", rule="the rule", measured=str(os.getpid()), cause="the cause")
        return None if os.getpid() == HERE else found

    failure = run_all_of([lambda: time.sleep(0.3), find])[1]
    assert failure is not None
    assert (failure.check, failure.rule, failure.cause) == ("check_shapes", "the rule", "the cause")
    assert int(failure.measured) != HERE
    assert str(failure).splitlines()[1].split() == ["rule:", "the", "rule"]
