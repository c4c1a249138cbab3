"""Compiled without graph breaks, and no different."""

import copy

import pytest
import torch

import vq_components
from vq_components import DeadCodeRevival, QuantizerOutput

LIVELY = DeadCodeRevival(threshold=0.9, decay=0.0)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def run(forward, quantizer, z, mask):
    z = z.clone().requires_grad_()
    out = forward(z, mask)
    (out.loss + out.quantized.square().mean()).backward()
    gradient = quantizer.codebook.grad
    quantizer.zero_grad()
    return out, z.grad, gradient


def assert_same(actual, expected):
    (out, *gradients), (other, *other_gradients) = actual, expected
    assert type(out) is QuantizerOutput
    assert torch.equal(out.quantized, other.quantized)
    assert torch.equal(out.indices, other.indices)
    torch.testing.assert_close((out.loss, out.terms), (other.loss, other.terms))
    torch.testing.assert_close(gradients, other_gradients)


@pytest.mark.parametrize("masked", [False, True])
def test_a_compiled_training_is_the_eager_one(build, differing, masked):
    """Defect 17: one graph, the start and revivals included, and it is not compiled again from step to step."""
    quantizer = build(revival=LIVELY)
    eager = copy.deepcopy(quantizer)
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    for step in range(5):
        z = torch.randn(2, 4, 6, 5)
        mask = torch.rand(2, 6, 5) > 0.3 if masked else None
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            assert_same(run(compiled, quantizer, z, mask), run(eager, eager, z, mask))
        assert not differing(quantizer, eager)
    assert int(quantizer.embedding.updates) == 4


def test_a_compiled_training_under_update_after_is_the_eager_one(build, differing):
    quantizer = build(revival=LIVELY)
    eager = copy.deepcopy(quantizer)
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    optimizers = []
    for module in (quantizer, eager):
        optimizers.append(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1)), *module.parameters()], lr=0.1))
        module.update_after(optimizers[-1])
    for step in range(4):
        z = torch.randn(2, 4, 6, 5)
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            assert_same(run(compiled, quantizer, z, None), run(eager, eager, z, None))
        for optimizer in optimizers:
            optimizer.step()
        assert not differing(quantizer, eager)


def test_a_compiled_evaluation_is_the_eager_one(build_started, state_of, differing):
    quantizer = build_started().eval()
    before = state_of(quantizer)
    forward = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    encode = torch.compile(quantizer.encode, backend="aot_eager", fullgraph=True)
    decode = torch.compile(quantizer.decode, backend="aot_eager", fullgraph=True)
    for step in range(3):
        z = torch.randn(2, 4, 6, 5)
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            out = forward(z)
            assert torch.equal(encode(z), out.indices)
            assert torch.equal(decode(out.indices), out.quantized)
        expected = quantizer(z)
        assert torch.equal(out.quantized, expected.quantized)
        torch.testing.assert_close(out.terms, expected.terms)
    assert not differing(quantizer, before)


def test_the_search_is_one_node(build_started):
    """Not a loop over tiles, whose number would be that of the first batch."""
    targets = []

    def backend(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compile(build_started().eval(), backend=backend)(torch.randn(2, 4, 6, 5))
    assert sum("nearest_code" in target for target in targets) == 1
    assert not [target for target in targets if "matmul" in target or "bmm" in target]


@pytest.mark.parametrize("name", ["vq_components::nearest_code", "vq_components::count_and_look_up"])
def test_the_operators_say_the_truth_about_themselves(build_started, name):
    """What they change and which shapes they return, as the compiler's own check sees it."""
    assert vq_components
    quantizer = build_started()
    codebook, z = quantizer.embedding, torch.randn(30, 4)
    if name == "vq_components::nearest_code":
        args = (z, quantizer.codebook.detach())
    else:
        average = codebook._average_state()
        live = torch.ones(30, dtype=torch.bool)
        args = (z, live, list(codebook._state()), list(average or []), list(codebook._rule()), True, True)
    namespace, operator = name.split("::")
    torch.library.opcheck(getattr(getattr(torch.ops, namespace), operator).default, args)
