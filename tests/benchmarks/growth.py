"""How the time of the nearest-entry search grows in N, K and D, next to the full distance matrix, as a plot.

    python tests/benchmarks/growth.py [--out growth.png] [--rounds 5]

One number grows, the other two stay at N = 2048, K = 4096, D = 32. Prints the medians as well.
"""

import argparse
import statistics
import time
from pathlib import Path

import matplotlib as mpl
import torch

import vq_components as vq

mpl.use("agg")
from matplotlib import pyplot as plt

FIXED = {"N": 2048, "K": 4096, "D": 32}
GROWING = {"N": [2**power for power in range(8, 16)], "K": [2**power for power in range(8, 18)],
           "D": [4, 8, 16, 32, 64, 128, 256, 512]}  # fmt: skip


def textbook(z, codebook):
    """The full matrix of squared distances."""
    return (z.square().sum(dim=1, keepdim=True) - 2 * z @ codebook.T + codebook.square().sum(dim=1)).argmin(dim=1)


WAYS = {"nearest_code": vq.functional.nearest_code, "full distance matrix": textbook}


def medians(number, size, dim, rounds):
    """Milliseconds of each way, which take turns."""
    z, codebook = torch.randn(number, dim), torch.randn(size, dim)
    times = {name: [] for name in WAYS}
    for repeat in range(rounds + 1):
        for name, search in WAYS.items():
            start = time.perf_counter()
            search(z, codebook)
            if repeat > 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("growth.png"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
    for axis, (letter, values) in zip(axes, GROWING.items(), strict=True):
        rows = [medians(*(FIXED | {letter: value}).values(), arguments.rounds) for value in values]
        for name in WAYS:
            axis.loglog(values, [row[name] for row in rows], "o-", label=name, base=2)
        for value, row in zip(values, rows, strict=True):
            print(letter, value, *(f"{name} {milliseconds:.2f} ms" for name, milliseconds in row.items()), flush=True)
        others = ", ".join(f"{key} = {value}" for key, value in FIXED.items() if key != letter)
        axis.set(xlabel=f"{letter}   ({others})", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms")
    axes[0].legend()
    figure.savefig(arguments.out, dpi=80)


if __name__ == "__main__":
    main()
