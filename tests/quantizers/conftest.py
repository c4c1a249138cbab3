"""The list of quantizers that keep the common contract, and what several files of tests measure with."""

import functools
import importlib.util
from pathlib import Path

import pytest
import torch

from vq_components import (
    FSQ,
    LFQ,
    EMAVectorQuantizer,
    GroupedQuantizer,
    GumbelQuantizer,
    IndexBackpropQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
)

SIZE, DIM = 16, 4  # of the quantizers below
QUANTIZERS = {
    "vector": functools.partial(VectorQuantizer, SIZE, DIM),
    "ema": functools.partial(EMAVectorQuantizer, SIZE, DIM),
}


def composite(kind, *parts, **settings):
    return lambda **more: kind([part() for part in parts], **settings, **more)


def half_width(kind=VectorQuantizer):
    return functools.partial(kind, SIZE, DIM // 2)


# Every public quantizer and wrapper, some around different parts: all take vectors of width 4 and have 16 entries (a
# stage).
FAMILY = {
    **QUANTIZERS,
    "vector_cosine": functools.partial(VectorQuantizer, SIZE, DIM, distance="cosine"),
    "ema_cosine": functools.partial(EMAVectorQuantizer, SIZE, DIM, distance="cosine"),
    "fsq": functools.partial(FSQ, (2, 2, 2, 2)),
    "lfq": functools.partial(LFQ, DIM),
    "gumbel": functools.partial(GumbelQuantizer, SIZE, 3, in_channels=DIM),
    "simvq": functools.partial(SimVQ, SIZE, DIM),
    "index": functools.partial(IndexBackpropQuantizer, SIZE, DIM),
    "projected": lambda **more: ProjectedQuantizer(VectorQuantizer(SIZE, 3), DIM, **more),
    "projected_fsq": lambda **more: ProjectedQuantizer(FSQ((4, 4)), DIM, **more),
    "residual": composite(ResidualQuantizer, *[QUANTIZERS["vector"]] * 3),
    "residual_mixed": composite(ResidualQuantizer, QUANTIZERS["ema"], functools.partial(SimVQ, SIZE, DIM)),
    "residual_dropout": composite(ResidualQuantizer, *[QUANTIZERS["ema"]] * 3, dropout=0.7),
    "grouped": composite(GroupedQuantizer, half_width(), half_width(EMAVectorQuantizer)),
    "grouped_residual": composite(GroupedQuantizer, *[composite(ResidualQuantizer, half_width(), half_width())] * 2),
    "projected_residual": lambda **more: ProjectedQuantizer(
        ResidualQuantizer([VectorQuantizer(SIZE, 3), EMAVectorQuantizer(SIZE, 3)]), DIM, **more
    ),
}


@pytest.fixture(params=FAMILY)
def build_any(request):
    """``build_any(**settings)``: as ``build``, for the whole family."""
    return FAMILY[request.param]


@pytest.fixture
def family():
    """All builders by name."""
    return FAMILY


@pytest.fixture(params=[name for name in FAMILY if name not in ("gumbel", "residual_dropout")])
def build_steady(request):
    """``build_steady(**settings)``: as ``build_any``, without those that draw random numbers in training."""
    return FAMILY[request.param]


@pytest.fixture
def build_used(build_any):
    """``build_used(**settings)``: one that has seen data, and whose updates are in the caller's hands."""
    return functools.partial(used, build_any)


def used(build, **settings):
    quantizer = build(**settings)
    shape = [9, 9]
    shape.insert(quantizer.channel_dim % 3, 4)
    for _ in range(4):  # quantizer dropout leaves no stage out of all of them
        quantizer(torch.randn(shape))
    quantizer.update_()
    return quantizer


@pytest.fixture(name="used")
def used_fixture():
    """``used(build)``: as ``build_used``, for a builder of the test's choice."""
    return used


@pytest.fixture(name="results")
def results_fixture():
    """``results(quantizer, z, mask)``: output and gradients of one training step, from equal random numbers."""
    return results


def results(quantizer, z, mask=None, *, autocast=False):
    torch.manual_seed(1)  # of Gumbel noise and quantizer dropout
    z = z.clone().requires_grad_()
    quantizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = quantizer(z, mask)
    weight = torch.arange(out.quantized.numel(), dtype=torch.float32).view(out.quantized.shape).cos()
    (out.loss + (out.quantized * weight).sum()).backward()
    return out, z.grad, [parameter.grad for parameter in quantizer.parameters()]


@pytest.fixture(params=QUANTIZERS)
def build(request):
    """``build(**settings)``: a fresh quantizer of 16 entries of width 4. A test that uses it runs for every class."""
    return QUANTIZERS[request.param]


@pytest.fixture
def build_started(build):
    """``build_started(**settings)``: one that has started from data, with statistics pending."""

    def make(**settings):
        quantizer = build(**settings)
        shape = [5, 5, 5]
        shape.insert(quantizer.channel_dim if quantizer.channel_dim > 0 else 4 + quantizer.channel_dim, DIM)
        for _ in range(3):
            quantizer(torch.randn(shape))
        return quantizer

    return make


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def differing(a, b, *, besides=()):
    """Names of the tensors that are not bit-equal (NaN equals NaN) in two modules or states."""
    a, b = (item if isinstance(item, dict) else state_of(item) for item in (a, b))
    assert a.keys() == b.keys()
    return {
        name
        for name in a
        if not torch.allclose(a[name], b[name], rtol=0, atol=0, equal_nan=True) or a[name].dtype != b[name].dtype
    } - {f"embedding.{name}" for name in besides}


@pytest.fixture(name="state_of")
def state_of_fixture():
    """``state_of(module)``: a copy of its state."""
    return state_of


@pytest.fixture(name="differing")
def differing_fixture():
    """``differing(a, b)``: names of the tensors in which two modules or states are not bit-equal."""
    return differing


@pytest.fixture(scope="session")
def reference():
    """The slow versions of ``tests/reference/vector_quantization.py``."""
    path = Path(__file__).parents[1] / "reference" / "vector_quantization.py"
    spec = importlib.util.spec_from_file_location("reference_vector_quantization", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors here are tiny: a second thread costs more than it brings, and sums keep their order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
