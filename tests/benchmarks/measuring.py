"""What the benchmark scripts of this folder share: times in turns, memory of a process, and the frame of a table."""

import argparse
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch


def medians(functions, rounds):
    """Median seconds of each function; they take turns, so that a slower machine is slower for all."""
    times = {name: [] for name in functions}
    for repeat in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if repeat > 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_above(work):
    """MiB that ``work()`` takes at most above what is there before it, by the system's account (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is there now
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def in_a_process(function, *arguments):
    """What the function returns in a new process of its own, whose memory nothing else has used."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def run_named(doc, benchmarks, *, rounds, columns="what | ours | alternative | its | ratio"):
    """Runs the benchmarks that the command line names, else all, as rows of one Markdown table."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(benchmarks))
    parser.add_argument("--rounds", type=int, default=rounds)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}\n")
    print(f"| {columns} |")
    print("|---" * len(columns.split("|")) + "|")
    for name in arguments.names or benchmarks:
        benchmarks[name](arguments.rounds)
