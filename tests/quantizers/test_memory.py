"""What a training step keeps in memory, and that it waits for no device."""

import itertools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from vq_components import (
    FSQ,
    LFQ,
    DeadCodeRevival,
    EMAVectorQuantizer,
    IndexBackpropQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
    functional,
)
from vq_components.functional import _search
from vq_components.quantizers import _statistics

N, K, D = 2048, 4096, 8  # an N x K matrix of float32 is 32 MiB, one of bool 8 MiB
BOTH = pytest.mark.parametrize("kind", [VectorQuantizer, EMAVectorQuantizer])


def training_step(quantizer, weight):
    out = quantizer(torch.randn(N, D) @ weight)
    (out.loss + out.quantized.square().mean()).backward()
    quantizer.update_()


def record(run):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    return profiler.profiler.kineto_results.events()


def on_an_accelerator(monkeypatch, *, chooses=False):
    for module in (_statistics, _search):
        monkeypatch.setattr(module, "can_choose", lambda tensor: chooses)


@BOTH
def test_a_training_step_makes_no_matrix_of_vectors_and_entries(kind):
    """Defects 8 and 11: no distances, no one-hot, in the start, the search, the statistics or the backward."""
    quantizer, weight = kind(K, D), torch.randn(D, D, requires_grad=True)
    for _ in range(2):
        events = record(lambda: training_step(quantizer, weight))
        sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
        assert len(sizes) > 20
        assert max(sizes) < N * K // 2  # bytes: not even as bool
        assert max(itertools.accumulate(sizes)) < N * K  # all that is alive at a time


@BOTH
def test_the_backward_keeps_vectors_but_neither_codebook_nor_search(kind):
    quantizer = kind(K, D)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        quantizer(torch.randn(64, D, requires_grad=True))
    assert saved
    assert max(tensor.numel() for tensor in saved) <= 64 * D
    assert quantizer.codebook.data_ptr() not in {tensor.untyped_storage().data_ptr() for tensor in saved}


READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::unique", "aten::_unique2", "aten::masked_select"}


@BOTH
def test_training_on_an_accelerator_reads_nothing_from_memory(kind, monkeypatch):
    """Defect 17: there each read waits for the device. Here, everything but the choice by values is the same."""
    on_an_accelerator(monkeypatch)
    quantizer, weight = kind(64, D), torch.randn(D, D, requires_grad=True)
    for _ in range(3):
        names = [event.name() for event in record(lambda: training_step(quantizer, weight))]
        assert "aten::index_add_" in names  # it sees what happens inside the operator
        assert not READS & set(names)


@BOTH
def test_choosing_rows_by_values_changes_nothing(kind, monkeypatch):
    """What a CPU does for speed is what an accelerator does without a wait."""
    revival = DeadCodeRevival(threshold=0.9, decay=0.5)
    fast, plain = kind(64, D, revival=revival), kind(64, D, revival=revival)
    for seed in range(8):
        z = torch.randn(40, D, generator=torch.Generator().manual_seed(seed))
        for quantizer, chooses in ((fast, True), (plain, False)):
            on_an_accelerator(monkeypatch, chooses=chooses)
            quantizer(z)
            quantizer.update_()
        for name, value in fast.state_dict().items():
            assert torch.equal(value, plain.state_dict()[name]), name


@BOTH
def test_an_evaluation_on_an_accelerator_reads_nothing_from_memory(kind, monkeypatch):
    on_an_accelerator(monkeypatch)
    quantizer = kind(64, D).eval()
    names = [event.name() for event in record(lambda: quantizer(torch.randn(N, D)))]
    assert "aten::bmm" in names  # it sees what happens inside the operator
    assert "aten::_local_scalar_dense" not in names


HUGE, WIDTH, FEW = 2**18, 18, 512  # an N x K matrix of float32 is 512 MiB, one of bool 128 MiB
HUGE_QUANTIZERS = {
    "vector": lambda: VectorQuantizer(HUGE, WIDTH),
    "cosine": lambda: EMAVectorQuantizer(HUGE, WIDTH, distance="cosine"),
    "fsq": lambda: ProjectedQuantizer(FSQ((8,) * 6), WIDTH),
    "lfq": lambda: LFQ(WIDTH),
    "simvq": lambda: SimVQ(HUGE, WIDTH),
    "index": lambda: IndexBackpropQuantizer(HUGE, WIDTH),
}


@pytest.mark.parametrize("name", HUGE_QUANTIZERS)
def test_no_quantizer_of_a_huge_codebook_makes_a_matrix_of_vectors_and_entries(name):
    """Defects 8 and 11, for the family. A few copies of the codebook are 18 MiB each."""
    quantizer = HUGE_QUANTIZERS[name]()
    z = torch.randn(FEW, WIDTH, requires_grad=True)

    def step():
        out = quantizer(z)
        (out.loss + out.quantized.square().mean()).backward()

    sizes = [event.nbytes() for event in record(step) if event.name() == "[memory]"]
    assert max(sizes) <= HUGE * WIDTH * 4 + 2**20
    assert max(itertools.accumulate(sizes)) < FEW * HUGE  # bytes: not even as bool, in all that is alive at a time


def test_residual_stages_keep_vectors_alone():
    quantizer = ResidualQuantizer([VectorQuantizer(K, D) for _ in range(3)])
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        quantizer(torch.randn(64, D, requires_grad=True))
    assert max(tensor.numel() for tensor in saved) <= 64 * D


@pytest.mark.parametrize("kind", ["code", "bit"])
def test_entropies_make_no_matrix_of_vectors_and_entries(kind):
    z = torch.randn(N, 12, requires_grad=True)

    def step():
        if kind == "bit":
            entropies = functional.bit_entropies(z, temperature=1.0)
        else:
            entropies = functional.code_entropies(z, torch.ones(K, 12), temperature=1.0)
        (entropies.sample - entropies.batch).backward()

    sizes = [event.nbytes() for event in record(step) if event.name() == "[memory]"]
    assert max(itertools.accumulate(sizes)) < N * K * 4 // 2
