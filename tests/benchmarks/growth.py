"""How the time of the nearest-entry search grows in N, K and D, next to the full distance matrix, as a plot.

    python tests/benchmarks/growth.py [--out growth.png] [--rounds 5]

One number grows, the other two stay at N = 2048, K = 4096, D = 32. Prints the medians as well.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import torch
from measuring import medians
from quantizer_speed import textbook

import vq_components as vq

mpl.use("agg")
from matplotlib import pyplot as plt

FIXED = {"N": 2048, "K": 4096, "D": 32}
GROWING = {"N": [2**power for power in range(8, 16)], "K": [2**power for power in range(8, 18)],
           "D": [4, 8, 16, 32, 64, 128, 256, 512]}  # fmt: skip


WAYS = {"nearest_code": vq.functional.nearest_code, "full distance matrix": textbook}


def milliseconds(number, size, dim, rounds):
    """Of each way, which take turns."""
    z, codebook = torch.randn(number, dim), torch.randn(size, dim)
    seconds = medians({name: lambda search=search: search(z, codebook) for name, search in WAYS.items()}, rounds)
    return {name: 1e3 * value for name, value in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("growth.png"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
    for axis, (letter, values) in zip(axes, GROWING.items(), strict=True):
        rows = [milliseconds(*(FIXED | {letter: value}).values(), arguments.rounds) for value in values]
        for name in WAYS:
            axis.loglog(values, [row[name] for row in rows], "o-", label=name, base=2)
        for value, row in zip(values, rows, strict=True):
            print(letter, value, *(f"{name} {time:.2f} ms" for name, time in row.items()), flush=True)
        others = ", ".join(f"{key} = {value}" for key, value in FIXED.items() if key != letter)
        axis.set(xlabel=f"{letter}   ({others})", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms")
    axes[0].legend()
    figure.savefig(arguments.out, dpi=80)


if __name__ == "__main__":
    main()
