"""The contract that the whole family keeps, wrappers included: copies, updates, freezing, compilation."""

import copy
import pickle

import pytest
import torch
from torch import nn

from vq_components import ResidualQuantizer


def test_eval_encode_and_decode_change_nothing(build_any, state_of, differing):
    quantizer = build_any()
    before = state_of(quantizer)
    for training in (True, False):
        quantizer.train(training)
        quantizer.decode(quantizer.encode(torch.randn(3, 4, 5)))
    quantizer(torch.randn(3, 4, 5))
    assert not differing(quantizer, before)


def test_a_forward_sets_no_attributes_and_changes_no_input(build_any, results):
    quantizer = build_any()

    def attributes():
        tables = ("_parameters", "_buffers", "_modules")
        return [{key: value for key, value in vars(m).items() if key not in tables} for m in quantizer.modules()]

    before = attributes()
    z = torch.randn(2, 4, 5)
    kept = z.clone()
    results(quantizer, z)
    quantizer.encode(z)
    assert attributes() == before
    assert torch.equal(z, kept)


@pytest.mark.parametrize("update", [False, True])
def test_two_forwards_then_one_backward(build_used, update):
    quantizer = build_used()
    weight = torch.randn(4, 4, requires_grad=True)
    total = 0
    for _ in range(2):
        out = quantizer(torch.randn(6, 4) @ weight)
        total = total + out.loss + out.quantized.square().sum()
    if update:
        quantizer.update_()
        if hasattr(quantizer, "set_codebook_"):
            quantizer.set_codebook_(torch.randn(quantizer.codebook.shape))
    total.backward()
    assert weight.grad.isfinite().all()


def test_micro_batches_count_as_one_batch(build_steady):
    quantizer = build_steady()
    for _ in range(3):  # one for each stage to start
        quantizer(torch.randn(40, 4))
        quantizer.update_()
    other = copy.deepcopy(quantizer)
    z = torch.randn(40, 4)
    quantizer(z)
    for part in z.split(10):
        other(part)
    for module in (quantizer, other):
        module.update_()
    state, other_state = quantizer.state_dict(), other.state_dict()
    for name in state:
        torch.testing.assert_close(state[name], other_state[name], msg=name)


@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle"])
@pytest.mark.parametrize("used", [True, False])
def test_a_copy_goes_on_as_the_original(build_any, build_used, differing, way, used, results):
    quantizer = (build_used if used else build_any)()
    quantizer(torch.randn(9, 4))
    if way == "state_dict":
        other = build_any()
        other.load_state_dict(quantizer.state_dict(), strict=True)
    else:
        other = copy.deepcopy(quantizer) if way == "deepcopy" else pickle.loads(pickle.dumps(quantizer))
    for _ in range(2):
        z = torch.randn(9, 4)
        torch.testing.assert_close(results(other, z), results(quantizer, z), rtol=0, atol=0)
        assert not differing(quantizer, other)


@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_to_one_graph_and_is_no_different(build_steady, differing, training):
    torch.compiler.reset()
    quantizer = build_steady().train(training)
    eager = copy.deepcopy(quantizer)
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    for step in range(3):
        z, mask = torch.randn(2, 4, 6), torch.rand(2, 6) > 0.3
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            values = []
            for forward in (compiled, eager):
                own = z.clone().requires_grad_()
                out = forward(own, mask)
                (out.loss + out.quantized.square().mean()).backward()
                values.append((tuple(out), own.grad))
        torch.testing.assert_close(values[0], values[1])
    assert not differing(quantizer, eager)


@pytest.mark.parametrize("name", ["gumbel", "residual_dropout"])
def test_what_draws_random_numbers_compiles_too(family, name):
    torch.compiler.reset()
    quantizer = family[name]()
    out = torch.compile(quantizer, backend="aot_eager", fullgraph=True)(torch.randn(2, 4, 6, requires_grad=True))
    (out.loss + out.quantized.sum()).backward()
    assert torch.equal(quantizer.decode(out.indices), out.quantized)


def test_it_can_be_exported(build_used):
    quantizer = build_used().eval()
    z = torch.randn(2, 4, 6)
    exported = torch.export.export(quantizer, (z,), strict=True)
    assert torch.equal(exported.module()(z).indices, quantizer(z).indices)


def test_a_frozen_codebook_stands_still_in_training(build_any, build_used, state_of, differing, results):
    """No start, no statistics, no update, no revival, no gradient; and ``train()`` does not undo it."""
    for make in (build_any, build_used):
        quantizer = make()
        z, indices = torch.randn(30, 4), torch.randint(0, 16, (30, *quantizer.index_shape))
        quantizer.freeze()
        before, decoded, encoded = state_of(quantizer), quantizer.decode(indices), quantizer.encode(z)
        optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1)), *quantizer.parameters()], lr=1, weight_decay=1)
        handle = quantizer.update_after(optimizer)
        for _ in range(3):
            quantizer.train()
            _, grad, grads = results(quantizer, z)
            assert grad.any()
            assert all(g is None for g in grads)
            optimizer.step()
        handle.remove()
        quantizer.update_()
        changed = differing(quantizer, before)
        assert {name.rpartition(".")[2] for name in changed} <= {"update_is_manual"}
        assert torch.equal(quantizer.decode(indices), decoded)
        assert torch.equal(quantizer.encode(z), encoded)
        assert copy.deepcopy(quantizer).frozen
        assert pickle.loads(pickle.dumps(quantizer)).frozen


def test_an_unfrozen_codebook_learns_again(build_used, state_of, differing, results):
    quantizer = build_used()
    other = copy.deepcopy(quantizer)
    quantizer.freeze()
    assert all(module.frozen for module in quantizer.modules() if hasattr(module, "frozen"))
    results(quantizer, torch.randn(30, 4))
    quantizer.unfreeze()
    assert not any(module.frozen for module in quantizer.modules() if hasattr(module, "frozen"))
    z = torch.randn(30, 4)
    torch.testing.assert_close(results(quantizer, z), results(other, z), rtol=0, atol=0)
    for module in (quantizer, other):
        module.update_()
    assert not differing(quantizer, other)


def test_freezing_keeps_the_inputs_gradient(build_used, results):
    quantizer, z = build_used(), torch.randn(30, 4)
    expected = results(copy.deepcopy(quantizer), z)
    quantizer.freeze()
    torch.testing.assert_close(results(quantizer, z)[:2], expected[:2])


def test_updates_reach_the_parts(build_used):
    quantizer = build_used()
    parts = [module for module in quantizer.modules() if hasattr(module, "updates")]
    if isinstance(quantizer, ResidualQuantizer):
        assert len(parts) == sum(hasattr(stage.embedding, "updates") for stage in quantizer.quantizers)
        quantizer.dropout = 0.0
    counts = [int(part.updates) for part in parts]
    assert all(part.update_is_manual for part in parts)
    quantizer(torch.randn(30, 4))
    quantizer.update_()
    assert [int(part.updates) for part in parts] == [count + 1 for count in counts]
