"""Two processes train as one process with the joined batch.

This file is also the program that each of the processes runs: ``python test_distributed.py RANK WORLD FOLDER``.
"""

import contextlib
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from vq_components import DeadCodeRevival, EMAVectorQuantizer, VectorQuantizer, _distributed

WORLD = 2
SIZE, DIM, N, STEPS = 16, 4, 60, 5
KINDS = {"vector": VectorQuantizer, "ema": EMAVectorQuantizer}
LIVELY = DeadCodeRevival(threshold=0.9, decay=0.1)


def build(kind, **settings):
    """The same on every process. In float64, so that the order of sums makes no visible difference."""
    torch.manual_seed(7)
    return KINDS[kind](SIZE, DIM, **settings).double()


def share(parts, rank):
    """Of a batch in one part per process the part of this one, or all of it, rank by rank."""
    return torch.cat(list(parts)) if rank is None else parts[rank]


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def masks():
    """Random ones; in the fourth step the second process has no live vector, in the fifth there is none at all."""
    live = torch.rand(STEPS, WORLD, N) > 0.3
    live[3, 1] = False
    live[4] = False
    return live


def run_statistics(kind, rank, *, masked=False, uneven=False):
    """Start, counts, averages and revivals of a bare quantizer, one update per step."""
    quantizer = build(kind, revival=LIVELY)
    quantizer.update_()
    batches = torch.randn(STEPS, WORLD, N, DIM).double() * torch.linspace(1, 3, STEPS)[:, None, None, None]
    batches[2, 1, 5] = torch.nan
    live = masks() if masked else torch.ones(STEPS, WORLD, N, dtype=torch.bool)
    log = {}
    for step, (z, mask) in enumerate(zip(batches, live, strict=True)):
        lengths = (N // 3, N - 7) if uneven else (N, N)
        z, mask = ([part[:n] for part, n in zip(parts, lengths, strict=True)] for parts in (z, mask))
        out = quantizer(share(z, rank), share(mask, rank))
        log[f"indices {step}"] = out.indices
        log |= {f"{name} before update {step}": tensor for name, tensor in state_of(quantizer).items()}
        if rank == 0:  # what a process does alone must not wait for the others
            quantizer.eval()(z[0])
            quantizer.train().encode(z[0])
        quantizer.update_()
    return log | state_of(quantizer)


def run_training(kind, rank, *, lazy=False):
    """A small model under DistributedDataParallel, with two micro-batches per step, the first one under no_sync."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(DIM, DIM).double(), build(kind, revival=LIVELY))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    if not lazy:
        model[1].update_after(optimizer)
    wrapped = model if rank is None else nn.parallel.DistributedDataParallel(model, broadcast_buffers=True)
    log = {}
    for step, batch in enumerate(torch.randn(STEPS, 2, WORLD, N, DIM).double()):
        for part, z in enumerate(batch):
            quiet = contextlib.nullcontext() if rank is None or part == 1 else wrapped.no_sync()
            with quiet:
                out = wrapped(share(z, rank))
                ((out.loss + out.quantized.square().mean()) / len(batch)).backward()
            log[f"indices {step}.{part}"] = out.indices
            log[f"loss {step}.{part}"] = out.loss.detach()
        log |= {f"gradient of {name} {step}": p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        log |= {f"{name} {step}": tensor for name, tensor in state_of(model).items()}
    return log


SCENARIOS = {
    f"{kind} {name}": (run, kind, settings)
    for kind in KINDS
    for name, run, settings in [
        ("statistics", run_statistics, {}),
        ("masked statistics", run_statistics, {"masked": True}),
        ("statistics of uneven batches", run_statistics, {"uneven": True}),
        ("training", run_training, {}),
        ("lazy training", run_training, {"lazy": True}),
    ]
}


def run_all(rank):
    results = {}
    for number, (name, (run, kind, settings)) in enumerate(SCENARIOS.items()):
        torch.manual_seed(number)
        results[name] = run(kind, rank, **settings)
    return results


def main(rank, folder):
    torch.set_num_threads(1)
    # Built, and one even used, before there is a process group: whether there is one must not be remembered.
    early = build("ema", revival=LIVELY)
    build("ema")(torch.randn(N, DIM))
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    try:
        results = run_all(rank)
        torch.manual_seed(99)
        early(torch.randn(WORLD, N, DIM).double()[rank])
        results["early"] = state_of(early)
        results["sizes"] = torch.tensor([_distributed.rank(), _distributed.world_size()])
        torch.save(results, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(run_processes):
    """Results of both processes."""
    return run_processes(__file__, WORLD)


@pytest.fixture(scope="module")
def of_one():
    """Results of one process with the joined batches."""
    with torch.random.fork_rng(devices=[]):
        return run_all(None)


def without(results, *words):
    return {name: value for name, value in results.items() if not name.startswith(words)}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_all_processes_hold_the_same_state_bit_for_bit(of_two, scenario):
    mine, yours = (without(results[scenario], "indices", "loss") for results in of_two)
    assert mine.keys() == yours.keys()
    assert not {name for name in mine if not torch.equal(mine[name], yours[name])}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_equal_one_with_the_joined_batch(of_one, of_two, scenario):
    one, two = of_one[scenario], [results[scenario] for results in of_two]
    torch.testing.assert_close(without(two[0], "indices", "loss"), without(one, "indices", "loss"))
    for name in one:
        if name.startswith("indices"):
            assert torch.equal(torch.cat([results[name] for results in two]), one[name]), name
        if name.startswith("loss"):  # each process has its own mean
            torch.testing.assert_close(torch.stack([results[name] for results in two]).mean(), one[name], msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_comparison_has_seen_starts_and_revivals(of_one, kind):
    """That they agree would mean nothing if nothing had happened."""
    log = of_one[f"{kind} statistics"]
    revived = [log[f"embedding.usage before update {step}"] == 1 for step in range(1, STEPS)]
    assert all(entries.any() and not entries.all() for entries in revived)
    assert log["embedding.updates"] == STEPS
    assert of_one[f"{kind} masked statistics"]["embedding.updates"] == STEPS - 1
    assert log["embedding.weight before update 0"].unique(dim=0).shape[0] == SIZE


def test_a_process_group_may_come_after_the_module(of_two):
    expected = build("ema", revival=LIVELY)
    torch.manual_seed(99)
    expected(torch.randn(WORLD, N, DIM).double().flatten(0, 1))
    for rank in range(WORLD):
        torch.testing.assert_close(of_two[rank]["early"], state_of(expected))
        assert of_two[rank]["sizes"].tolist() == [rank, WORLD]


def test_one_process_is_left_alone():
    tensor = torch.tensor([1.0, 2.0])
    _distributed.all_reduce_sum_(tensor)
    _distributed.all_reduce_min_(tensor)
    assert tensor.tolist() == [1.0, 2.0]
    assert (_distributed.rank(), _distributed.world_size()) == (0, 1)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[3]))
