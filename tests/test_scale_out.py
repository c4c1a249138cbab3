"""Three processes, one of them often without a vector, equal one; and a sharded model trains.

This file is also the program that each of the processes runs: ``python test_scale_out.py RANK WORLD FOLDER PART``.
"""

import datetime
import inspect
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from vq_components import DeadCodeRevival, Decoder, EMAVectorQuantizer, Encoder, VectorQuantizer, VQModel

try:
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
except ImportError:  # torch 2.5
    fully_shard = None

SIZE, DIM, STEPS = 16, 4, 6
KINDS = {"vector": VectorQuantizer, "ema": EMAVectorQuantizer}
LENGTHS = [(40, 0, 13), (0, 0, 50), (7, 61, 1), (0, 30, 30), (25, 25, 25), (0, 0, 0)]  # of each step and process
CONFIG = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (), "resolution": 8, "z_channels": 8}


def build(kind):
    """The same on every process, in float64, so that the order of sums makes no visible difference."""
    torch.manual_seed(7)
    return KINDS[kind](SIZE, DIM, revival=DeadCodeRevival(threshold=0.8, decay=0.3)).double()


def batches():
    """For each step one batch and one mask per process; in the third step the second process has no live vector."""
    torch.manual_seed(1)
    for step, lengths in enumerate(LENGTHS):
        zs = [(1 + step) * torch.randn(length, DIM).double() for length in lengths]
        masks = [torch.rand(length) > 0.2 for length in lengths]
        if step == 2:
            masks[1] = torch.zeros(lengths[1], dtype=torch.bool)
        yield zs, masks


def mine(parts, rank):
    """This process's part, or with ``rank`` None all of them joined."""
    return torch.cat(parts) if rank is None else parts[rank]


def run_statistics(kind, rank):
    """States of a bare quantizer after each update, its health at the end, and the usage metric."""
    from vq_components.metrics import CodebookUsage  # slow to import, and not every process needs it

    quantizer, metric = build(kind), CodebookUsage(SIZE)
    log = {}
    for step, (zs, masks) in enumerate(batches()):
        out = quantizer(mine(zs, rank), mine(masks, rank))
        metric.update(out.indices)
        quantizer.update_()
        log |= {f"{name} {step}": tensor.clone() for name, tensor in quantizer.state_dict().items()}
    window = [(mine(zs, rank), mine(masks, rank)) for zs, masks in batches()]
    window = window[:0] if rank == 1 else window  # a process without a single batch must not keep the others waiting
    health = quantizer.health([z for z, _ in window], [mask for _, mask in window])
    numbers = {name: getattr(health, name) for name in health._fields if name != "reasons"}
    return log | numbers | {f"metric {name}": value for name, value in metric.compute().items()}, health.reasons


def health_without_second_part(kind):
    """What one process says of the window above: all batches but those of the second process."""
    quantizer = build(kind)
    for zs, masks in batches():
        quantizer(torch.cat(zs), torch.cat(masks))
        quantizer.update_()
    window = [(torch.cat(zs[::2]), torch.cat(masks[::2])) for zs, masks in batches()]
    return quantizer.health([z for z, _ in window], [mask for _, mask in window])


def run_training(kind, rank):
    """A model under DistributedDataParallel, where a process may have an empty batch."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(DIM, DIM).double(), build(kind))
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[1].update_after(optimizer)
    for zs, _ in batches():
        out = wrapped(mine(zs, rank))
        optimizer.zero_grad()
        (out.loss + out.quantized.square().sum()).backward()
        optimizer.step()
    return model.state_dict()


def run_sharded(kind):
    """Losses, codebook and shards of a VQModel under ``fully_shard``."""
    torch.manual_seed(0)
    model = VQModel(Encoder(in_channels=3, **CONFIG), KINDS[kind](SIZE, DIM), Decoder(out_ch=3, **CONFIG))
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    if kind == "vector":
        codebook = model.quantize.codebook

        def average(gradient):
            dist.all_reduce(gradient)
            return gradient / dist.get_world_size()

        fully_shard(model, mesh=mesh, ignored_params={codebook})
        codebook.register_hook(average)
    else:
        fully_shard(model, mesh=mesh)
    for method in ("encode", "decode"):
        register_fsdp_forward_method(model, method)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.update_after(optimizer)
    images = torch.rand(2, 4, 3, 8, 8)[dist.get_rank()] * 2 - 1
    losses = []
    for _ in range(8):
        out = model(images)
        loss = (out.reconstructions - images).square().mean() + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    sharded = sum(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    state = {name: tensor.clone() for name, tensor in model.quantize.state_dict().items()}
    tokens = model.eval().encode(images)  # right after a training step, and so is decode
    decoded, out = model.decode(tokens), model(images)
    same = torch.equal(tokens, out.indices) and torch.allclose(decoded, out.reconstructions, atol=1e-5)
    return {"losses": torch.stack(losses), "sharded": sharded, "state": state, "same": same}


def refuse_sharded(*, lazy):
    """The message of a training with a sharded codebook, from the forward or from the update."""
    model = nn.Sequential(nn.Linear(DIM, DIM), VectorQuantizer(SIZE, DIM))
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
    try:
        model(torch.randn(9, DIM)) if lazy else model[1].update_()
    except TypeError as error:
        return str(error)
    return ""


def main(rank, world, folder, part):
    torch.set_num_threads(1)
    settings = {"rank": rank, "world_size": world, "timeout": datetime.timedelta(seconds=120)}
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), world), **settings)
    if part == "uneven":
        runs = {"statistics": run_statistics, "training": run_training}
        results = {f"{kind} {name}": run(kind, rank) for kind in KINDS for name, run in runs.items()}
    else:
        kinds = [
            kind for kind in KINDS if kind == "ema" or "ignored_params" in inspect.signature(fully_shard).parameters
        ]
        results = {kind: run_sharded(kind) for kind in kinds}
        results |= {"refused forward": refuse_sharded(lazy=True), "refused update": refuse_sharded(lazy=False)}
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_three(run_processes):
    return run_processes(__file__, 3, "uneven")


@pytest.fixture(scope="module")
def sharded(run_processes):
    if fully_shard is None:
        pytest.skip("this version of torch has no torch.distributed.fsdp.fully_shard")
    return run_processes(__file__, 2, "sharded")


HEALTH = ("counts", "usage", "perplexity", "dead", "duplicates", "code_norms", "latent_norms", "error")


@pytest.mark.parametrize("kind", KINDS)
def test_three_uneven_processes_equal_one(of_three, kind):
    expected, _ = run_statistics(kind, None)
    expected = {name: value for name, value in expected.items() if name not in HEALTH}
    for results in of_three:
        log = {name: value for name, value in results[f"{kind} statistics"][0].items() if name not in HEALTH}
        torch.testing.assert_close(log, expected)
    revived = [expected[f"embedding.usage {step}"] == 1 for step in range(STEPS - 1)]
    assert any(entries.any() and not entries.all() for entries in revived)  # else the comparison would say little
    assert expected[f"embedding.updates {STEPS - 1}"] == STEPS - 1  # the last step had no vector at all


@pytest.mark.parametrize("kind", KINDS)
def test_health_is_that_of_all_processes_even_if_one_has_no_batch(of_three, kind):
    expected = health_without_second_part(kind)
    for results in of_three:
        log, reasons = results[f"{kind} statistics"]
        torch.testing.assert_close({name: log[name] for name in HEALTH}, {n: getattr(expected, n) for n in HEALTH})
        assert reasons == expected.reasons
    assert expected.counts.sum() > 100


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_on_one_process_keeps_all_in_step(of_three, kind):
    first, *others = (results[f"{kind} training"] for results in of_three)
    for other in others:
        assert not {name for name in first if not torch.equal(first[name], other[name])}
    assert first["1.embedding.updates"] == STEPS - 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_model_trains_with_one_codebook(sharded, kind):
    if kind not in sharded[0]:
        pytest.skip("this version of fully_shard has no ignored_params")
    first, second = (results[kind] for results in sharded)
    for results in (first, second):
        assert results["losses"][-1] < 0.8 * results["losses"][0]
        assert results["sharded"] > 10
        assert results["same"]
    assert first["losses"][0] != second["losses"][0]  # they have seen different images
    assert not {name for name, tensor in first["state"].items() if not torch.equal(tensor, second["state"][name])}
    assert first["state"]["embedding.updates"] == 8


@pytest.mark.parametrize("place", ["forward", "update"])
def test_a_sharded_codebook_is_refused(sharded, place):
    message = (
        "A codebook that trains must be whole on every process, but its entries are sharded. Keep them out: "
        "fully_shard(model, ignored_params={quantizer.embedding.weight}), and average their gradient over the "
        "processes yourself; or use EMAVectorQuantizer, whose entries are a buffer and are never sharded."
    )
    assert [results[f"refused {place}"] for results in sharded] == [message, message]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
