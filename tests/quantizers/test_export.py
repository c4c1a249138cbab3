"""Exported for other runtimes: tokens and entries are those of the module, for every batch and size."""

import io

import pytest
import torch

from vq_components import functional
from vq_components.functional import _search

SHAPES = [(2, 4, 6, 5), (3, 4, 7, 9)]  # of the example, and of the check
ONNX = ["vector_cosine", "fsq", "lfq", "gumbel", "index", "residual"]  # all that others are made of
ONE_OF_EACH = [*ONNX, "ema", "simvq", "projected", "grouped"]
DYNAMIC = torch.export.Dim.DYNAMIC

needs_an_exporter_that_says_so = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="torch before 2.7 does not tell that it exports"
)


class Encode(torch.nn.Module):
    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z):
        return self.quantizer.encode(z)

    dynamic_shapes = ({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC},)


class Decode(Encode):
    def forward(self, indices):
        return self.quantizer.decode(indices)

    dynamic_shapes = ({0: DYNAMIC, 1: DYNAMIC, 2: DYNAMIC},)


def both_ways(quantizer):
    """Encoder and decoder, each with an example and an input of another batch and size."""
    examples = [torch.randn(shape) for shape in SHAPES]
    yield Encode(quantizer).eval(), *examples
    yield Decode(quantizer).eval(), *(quantizer.encode(z) for z in examples)


def saved_and_loaded(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def run_in_onnx(program, value, *, folder):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.onnx.export(program, f=folder / "quantizer.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(folder / "quantizer.onnx", providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: value.numpy()})[0])


def operators(program):
    graphs = [module.graph for module in program.graph_module.modules() if hasattr(module, "graph")]
    return {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"}


@needs_an_exporter_that_says_so
@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_programs_give_the_same_without_this_package(family, used, kind, tmp_path):
    """No operator is the package's own: a saved program runs where there is none, and so does ONNX made of it."""
    for module, example, other in both_ways(used(family[kind]).eval()):
        program = torch.export.export(module, (example,), dynamic_shapes=module.dynamic_shapes)
        assert not [name for name in operators(program) if "vq_components" in name]
        assert torch.equal(saved_and_loaded(program).module()(other), module(other))
        if kind in ONNX:
            found = run_in_onnx(program, other, folder=tmp_path)
            # Indices are equal: no vector here is so near to the middle between two entries that rounding decides.
            torch.testing.assert_close(found, module(other).detach(), rtol=1e-5, atol=1e-6)


def test_whole_results_can_be_saved(family):
    quantizer = family["vector"]()
    z = torch.randn(SHAPES[0])
    quantizer(z)
    program = saved_and_loaded(torch.export.export(quantizer.eval(), (z,)))
    torch.testing.assert_close(program.module()(z), quantizer(z))
    assert type(program.module()(z)) is type(quantizer(z))


class Search(torch.nn.Module):
    def forward(self, z, codebook):
        return functional.nearest_code(z, codebook)


class Products(torch.nn.Module):
    def forward(self, z, codebook):
        with torch.no_grad():
            return functional.index_backprop(z, codebook)[1]


@needs_an_exporter_that_says_so
@pytest.mark.parametrize("search", [Search(), Products()])
def test_the_exported_search_goes_in_tiles_and_takes_the_first_of_equals(monkeypatch, search):
    """Several tiles, the last one incomplete, with the first 14 entries twice, and some that are not finite."""
    monkeypatch.setattr(_search, "_MOST_COLUMNS", 16)
    entries = torch.randint(-8, 9, (14, 4)).float()
    if isinstance(search, Search):
        entries[3], entries[4] = torch.inf, torch.nan
    codebook = torch.cat([entries, entries, torch.randint(-8, 9, (14, 4)) + 0.5])
    z = torch.randint(-8, 9, (200, 4)).float()
    program = torch.export.export(search, (z[:50], codebook), dynamic_shapes=({0: DYNAMIC}, None))
    sizes = [node.meta["val"].shape for node in program.graph.nodes if "matmul" in str(node.target)]
    assert not sizes or [size[1] for size in sizes] == [16, 16, 10]
    indices = program.module()(z, codebook)
    assert torch.equal(indices, search(z, codebook))
    assert not ((indices >= 14) & (indices < 28)).any()
    assert indices.max() >= 32  # in the last tile
