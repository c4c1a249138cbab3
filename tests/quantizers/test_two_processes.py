"""Every quantizer under DistributedDataParallel on two processes, of which one may have no live vector, equals one.

This file is also the program that each of the processes runs: ``python test_two_processes.py RANK WORLD FOLDER``.
"""

import datetime
import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from vq_components import DeadCodeRevival, EMAVectorQuantizer, ProjectedQuantizer, ResidualQuantizer, VectorQuantizer

COMMON = runpy.run_path(str(Path(__file__).with_name("conftest.py")))  # a process of its own has no fixtures
SIZE, DIM, FAMILY = COMMON["SIZE"], COMMON["DIM"], COMMON["FAMILY"]
WORLD = 2
# Live vectors of each step and process, and how many are masked in addition.
LIVE = [(30, 30), (41, 12), (0, 25), (33, 0), (0, 0), (20, 37)]
MASKED = [(0, 0), (3, 17), (9, 4), (0, 0), (0, 6), (8, 8)]
CASES = {
    **FAMILY,
    "projected_ema": lambda: ProjectedQuantizer(EMAVectorQuantizer(SIZE, 3), DIM),
    "residual_ema": lambda: ResidualQuantizer([EMAVectorQuantizer(SIZE, DIM, distance="cosine") for _ in range(2)]),
}
# Their result on a batch is not that on its parts: LFQ's entropy of the batch is of the process's own, Gumbel draws.
BY_PARTS = ("lfq", "gumbel")


class Model(nn.Module):
    """The same on every process, in float64, so that the order of sums makes no visible difference."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(7)
        self.layer = nn.Linear(DIM, DIM)
        self.quantizer = CASES[name]()
        for module in self.quantizer.modules():
            if isinstance(module, VectorQuantizer | EMAVectorQuantizer):
                module.revival = DeadCodeRevival(threshold=0.9, decay=0.1)
        self.double()

    def forward(self, z, mask):
        return self.quantizer(self.layer(z), mask)


def batches():
    """For each step a list with a batch and a mask per process."""
    generator = torch.Generator().manual_seed(5)
    for step, (live, masked) in enumerate(zip(LIVE, MASKED, strict=True)):
        parts = []
        for own, more in zip(live, masked, strict=True):
            z = (1 + step) * torch.randn(own + more, DIM, generator=generator, dtype=torch.float64)
            mask = torch.randperm(own + more, generator=generator) < own
            parts.append((z, mask))
        yield parts


def backward(model, z, mask, share):
    """Adds the gradient of a batch with this share of all live vectors: losses are means over a batch."""
    out = model(z, mask)
    quantized = (out.quantized + 0.3).square().sum() / mask.sum().clamp(min=1)
    (share * (out.loss + quantized)).backward()
    return out


def run(name, rank, *, same_draws=True):
    """One log of a training: of this process, or with ``rank`` None of one process with the joined batches."""
    model = Model(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.quantizer.update_after(optimizer)
    wrapped = model if rank is None else nn.parallel.DistributedDataParallel(model)
    log = {}
    for step, parts in enumerate(batches()):
        shares = [float(mask.sum()) / max(sum(LIVE[step]), 1) for _, mask in parts]
        if rank is not None:  # the wrapper takes the mean over the processes
            todo = [(rank, *parts[rank], shares[rank] * WORLD)]
        elif name in BY_PARTS:
            todo = [(number, *part, share) for number, (part, share) in enumerate(zip(parts, shares, strict=True))]
        else:
            todo = [(0, *(torch.cat(both) for both in zip(*parts, strict=True)), 1.0)]
        indices = []
        for number, z, mask, share in todo:
            torch.manual_seed(100 * step + (0 if same_draws and name not in BY_PARTS else number))
            indices.append(backward(wrapped, z, mask, share).indices)
        log[f"indices {step}"] = torch.cat(indices)
        log |= {f"gradient of {key} {step}": p.grad.clone() for key, p in model.named_parameters() if p.requires_grad}
        optimizer.step()
        optimizer.zero_grad()
        log |= {f"{key} {step}": tensor.clone() for key, tensor in model.state_dict().items()}
    window = [part for parts in batches() for part in (parts if rank is None else parts[rank : rank + 1])]
    with torch.no_grad():
        health = model.quantizer.health([model.layer(z) for z, _ in window], [mask for _, mask in window])
    return log | {f"health {key}": value for key, value in health._asdict().items() if key != "reasons"}


def main(rank, folder):
    torch.set_num_threads(1)
    settings = {"rank": rank, "world_size": WORLD, "timeout": datetime.timedelta(seconds=60)}
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), WORLD), **settings)
    results = {name: run(name, rank) for name in CASES}
    results["different draws"] = run("residual_dropout", rank, same_draws=False)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(run_processes):
    return run_processes(__file__, WORLD)


def without_indices(log):
    return {name: value for name, value in log.items() if not name.startswith("indices")}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one_with_the_joined_batch(of_two, name):
    """Start, statistics, revivals, gradients, and the report on the codebook."""
    expected, logs = run(name, None), [results[name] for results in of_two]
    for log in logs:
        torch.testing.assert_close(without_indices(log), without_indices(expected), equal_nan=True)
    for step in range(len(LIVE)):
        key = f"indices {step}"
        assert torch.equal(torch.cat([log[key] for log in logs]), expected[key])
        gradients = [value for key, value in expected.items() if key.startswith("grad") and key.endswith(f" {step}")]
        assert any(value.any() for value in gradients) == (sum(LIVE[step]) > 0)  # else equality would say little


@pytest.mark.parametrize("name", [*CASES, "different draws"])
def test_both_hold_the_same_bits(of_two, name):
    mine, yours = (without_indices(results[name]) for results in of_two)
    assert mine.keys() == yours.keys()
    different = {key for key in mine if not torch.allclose(mine[key], yours[key], rtol=0, atol=0, equal_nan=True)}
    assert not different


@pytest.mark.parametrize("name", [name for name in CASES if any("usage" in key for key in Model(name).state_dict())])
def test_the_comparison_has_seen_starts_and_revivals(of_two, name):
    log = of_two[0][name]
    for key in Model(name).state_dict():
        if key.endswith(".started"):
            assert log[f"{key} {len(LIVE) - 1}"]  # the first stages in the first step, others later
        if key.endswith(".usage"):
            revived = [log[f"{key} {step}"] == 1 for step in range(len(LIVE))]
            assert any(entries.any() and not entries.all() for entries in revived), key


def test_processes_that_drop_different_stages_have_drawn_different_numbers(of_two):
    used = [torch.cat([log[f"indices {step}"] for step in (0, 1, 5)]) for log in (r["different draws"] for r in of_two)]
    assert [(indices >= 0).any(dim=0).tolist() for indices in used]
    first, second = ((log["different draws"]["indices 0"][0] >= 0).tolist() for log in of_two)
    assert first != second


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[3]))
