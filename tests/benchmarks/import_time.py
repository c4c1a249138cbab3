"""How much longer ``import vq_components`` takes than ``import torch`` alone; the goal is at most 1.15 times as long.

Run ``python tests/benchmarks/import_time.py``: it takes about a minute. The two imports alternate, each in a fresh
interpreter, so that a machine that gets slower or faster meanwhile does so for both.
"""

import statistics
import subprocess
import sys

ROUNDS = 15
GOAL = 1.15
TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def seconds(module: str) -> float:
    """Time of one import in a fresh interpreter, without the interpreter's own start."""
    command = [sys.executable, "-c", TIMED.format(module)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    times: dict[str, list[float]] = {"torch": [], "vq_components": []}
    for module in times:
        seconds(module)  # fills the file cache and writes the bytecode
    for _ in range(ROUNDS):
        for module, measured in times.items():
            measured.append(seconds(module))
    torch_time, package_time = (statistics.median(measured) for measured in times.values())
    print(f"median of {ROUNDS}: import torch {torch_time:.3f} s, import vq_components {package_time:.3f} s")
    print(f"ratio {package_time / torch_time:.3f} (goal: at most {GOAL})")
