"""The list of quantizers that keep the common contract, and what several files of tests measure with."""

import functools
import importlib.util
from pathlib import Path

import pytest
import torch

from vq_components import EMAVectorQuantizer, VectorQuantizer

SIZE, DIM = 16, 4  # of the quantizers below
QUANTIZERS = {
    "vector": functools.partial(VectorQuantizer, SIZE, DIM),
    "ema": functools.partial(EMAVectorQuantizer, SIZE, DIM),
}


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
