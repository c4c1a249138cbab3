"""The contract that the whole family keeps, wrappers included; the vector quantizers' own is in the parts 1 to 4."""

import contextlib
import copy
import pickle

import pytest
import torch
from torch import nn

from vq_components import QuantizerOutput, ResidualQuantizer

TERMS = {"commitment", "codebook", "perplexity", "usage"}
LAYOUTS = [((5, 4), 1), ((3, 4, 5), 1), ((3, 4, 5, 2), 1), ((3, 5, 4), -1), ((3, 5, 4, 2), -2), ((0, 4, 5), 1)]
GARBAGE = [1e4, torch.nan, torch.inf]


@pytest.fixture
def build_used(build_any):
    """``build_used(**settings)``: one that has seen data, and whose updates are in the caller's hands."""

    def make(**settings):
        quantizer = build_any(**settings)
        shape = [9, 9]
        shape.insert(quantizer.channel_dim % 3, 4)
        for _ in range(4):  # quantizer dropout leaves no stage out of all of them
            quantizer(torch.randn(shape))
        quantizer.update_()
        return quantizer

    return make


def same_draws(seed=1):
    """Gumbel noise and quantizer dropout are drawn from the global generator."""
    torch.manual_seed(seed)


def results(quantizer, z, mask=None, forward_under=contextlib.nullcontext()):  # noqa: B008
    """Output and gradients of one training step from equal random numbers."""
    same_draws()
    z = z.clone().requires_grad_()
    quantizer.zero_grad()
    with forward_under:
        out = quantizer(z, mask)
    weight = torch.arange(out.quantized.numel(), dtype=torch.float32).view(out.quantized.shape).cos()
    (out.loss + (out.quantized * weight).sum()).backward()
    return out, z.grad, [parameter.grad for parameter in quantizer.parameters()]


def samples(quantizer):
    """Whether the forward's choice is random now: then ``encode`` need not choose the same."""
    return quantizer.training and any(
        type(module).__name__ == "GumbelQuantizer" or getattr(module, "dropout", 0) > 0
        for module in quantizer.modules()
    )


@pytest.mark.parametrize("training", [True, False])
def test_one_named_result_in_every_mode(build_any, training):
    quantizer = build_any().train(training)
    for mask in (None, torch.rand(2, 5, 3) > 0.5):
        out = quantizer(torch.randn(2, 4, 5, 3, requires_grad=True), mask)
        assert type(out) is QuantizerOutput
        assert out.quantized.shape == (2, quantizer.dim_out, 5, 3)
        assert out.indices.shape == (2, 5, 3, *quantizer.index_shape)
        assert out.indices.dtype == torch.int64
        assert out.terms.keys() >= TERMS
        for name, term in (*out.terms.items(), ("loss", out.loss)):
            assert term.shape == (), name
            assert term.dtype == torch.float32, name
            assert term.isfinite(), name
        assert not any(term.requires_grad for term in out.terms.values())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "channel_dim"), LAYOUTS)
def test_every_layout_equals_the_permuted_vectors(build_used, shape, channel_dim, training):
    quantizer = build_used(channel_dim=channel_dim).train(training)
    flat = copy.deepcopy(quantizer)
    flat.channel_dim = 1
    z = torch.randn(shape)
    same_draws()
    out = quantizer(z)
    same_draws()
    expected = flat(z.movedim(channel_dim, -1).reshape(-1, 4))
    assert torch.equal(out.quantized.movedim(channel_dim, -1).reshape(-1, quantizer.dim_out), expected.quantized)
    assert torch.equal(out.indices.view(-1, *quantizer.index_shape), expected.indices)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(quantizer.decode(out.indices), out.quantized)
    if not samples(quantizer):
        assert torch.equal(quantizer.encode(z), out.indices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_the_output_is_what_decode_gives_bit_for_bit(build_used, dtype, training):
    for quantizer in (build_used(), build_used().double()):
        quantizer.train(training)
        for _ in range(3):
            out = quantizer(torch.randn(3, 4, 5).to(dtype))
            assert out.quantized.dtype == dtype
            assert torch.equal(quantizer.decode(out.indices).to(dtype), out.quantized)


def test_half_precision_is_computed_in_float32(build_used):
    quantizer = build_used()
    z = torch.randn(3, 4, 5).bfloat16()
    out, grad, _ = results(copy.deepcopy(quantizer), z)
    expected, expected_grad, _ = results(quantizer, z.float())
    assert torch.equal(out.indices, expected.indices)
    assert torch.equal(out.quantized, expected.quantized.bfloat16())
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(grad.float(), expected_grad, rtol=2e-2, atol=2e-2)


def test_autocast_changes_nothing(build_used, differing):
    quantizer = build_used()
    other = copy.deepcopy(quantizer)
    z = torch.randn(3, 4, 5)
    expected = results(other, z)
    out = results(quantizer, z, forward_under=torch.autocast("cpu", dtype=torch.bfloat16))
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.decode(out[0].indices), expected[0].quantized)
        assert torch.equal(quantizer.encode(z), other.encode(z))
    assert not differing(quantizer, other)


def test_a_model_of_half_precision_works(build_used):
    quantizer = build_used().bfloat16()
    z = torch.randn(3, 4, 5, dtype=torch.bfloat16, requires_grad=True)
    out = quantizer(z)
    (out.loss + out.quantized.float().sum()).backward()
    assert torch.equal(quantizer.decode(out.indices).bfloat16(), out.quantized)
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_under_the_mask_influences_nothing(build_any, build_used, differing, training, garbage):
    for make in (build_any, build_used):
        quantizer = make().train(training)
        other = copy.deepcopy(quantizer)
        z, mask = torch.randn(3, 4, 7), torch.rand(3, 7) > 0.4
        dirty = torch.where(mask[:, None], z, garbage)
        (out, grad, grads), expected = results(quantizer, dirty, mask), results(other, z, mask)
        torch.testing.assert_close((out, grad, grads), expected, rtol=0, atol=0)
        assert (out.indices[~mask] == -1).all()
        assert not out.quantized.movedim(1, -1)[~mask].any()
        assert not grad.movedim(1, -1)[~mask].any()
        assert torch.equal(quantizer.decode(out.indices), out.quantized)
        for module in (quantizer, other):
            module.update_()
        assert not differing(quantizer, other)


def test_a_mask_equals_leaving_the_vectors_out(build_used, differing):
    quantizer = build_used().eval()  # in training, noise is drawn for masked vectors too
    other = copy.deepcopy(quantizer)
    z, mask = torch.randn(3, 4, 7), torch.rand(3, 7) > 0.4
    out, expected = quantizer(z, mask), other(z.movedim(1, -1)[mask])
    assert torch.equal(out.indices[mask], expected.indices)
    torch.testing.assert_close(out.quantized.movedim(1, -1)[mask], expected.quantized)
    torch.testing.assert_close((out.loss, out.terms), (expected.loss, expected.terms))


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 4, 5)])
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_without_a_live_vector_costs_and_moves_nothing(build_used, state_of, differing, shape, training):
    quantizer = build_used().train(training)
    before = state_of(quantizer)
    mask = torch.zeros(shape[0], 5, dtype=torch.bool)
    out, grad, grads = results(quantizer, torch.full(shape, torch.nan), mask)
    assert out.loss == 0
    assert out.terms["perplexity"] == 1
    assert all(term == 0 for name, term in out.terms.items() if name != "perplexity")
    assert not grad.any()
    assert not any(g.any() for g in grads if g is not None)
    quantizer.update_()
    assert not differing(quantizer, before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_vector_that_is_not_finite_makes_the_loss_nan_and_enters_nothing(build_used, differing, bad):
    quantizer = build_used()
    other = copy.deepcopy(quantizer)
    z, live = torch.randn(20, 4), torch.arange(20) != 7
    dirty = z.clone()
    dirty[7] = bad
    same_draws()
    out = quantizer(dirty)
    same_draws()
    expected = other(z, live)
    assert out.loss.isnan()
    assert torch.equal(out.indices[live], expected.indices[live])
    torch.testing.assert_close(out.quantized[live], expected.quantized[live], rtol=0, atol=0)
    assert (out.indices[7] <= 0).all()
    for module in (quantizer, other):
        module.update_()
    assert not differing(quantizer, other)


def test_a_vector_that_is_not_finite_spoils_no_other_gradient(build_used):
    z = torch.randn(20, 4)
    z[7] = torch.nan
    quantizer = build_used()
    out, grad, _ = results(quantizer, z)
    assert out.loss.isnan()
    assert grad[torch.arange(20) != 7].isfinite().all()


def test_a_vector_is_quantized_alike_in_any_batch(build_used):
    quantizer = build_used().eval()
    z = torch.randn(20, 4)
    together = quantizer(z).indices
    assert torch.equal(torch.cat([quantizer(row).indices for row in z.split(1)]), together)


def test_eval_encode_and_decode_change_nothing(build_any, state_of, differing):
    quantizer = build_any()
    before = state_of(quantizer)
    for training in (True, False):
        quantizer.train(training)
        quantizer.decode(quantizer.encode(torch.randn(3, 4, 5)))
    quantizer(torch.randn(3, 4, 5))
    assert not differing(quantizer, before)


def test_a_forward_sets_no_attributes_and_changes_no_input(build_any):
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


def test_micro_batches_count_as_one_batch(build_used, differing):
    quantizer = build_used()
    if samples(quantizer):
        pytest.skip("draws once per forward")
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
def test_a_copy_goes_on_as_the_original(build_any, build_used, differing, way, used):
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
def test_it_compiles_to_one_graph_and_is_no_different(build_any, differing, training):
    torch.compiler.reset()
    quantizer = build_any().train(training)
    if samples(quantizer):
        pytest.skip("compiled code draws other random numbers")
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


def test_random_quantizers_compile_too(build_any):
    torch.compiler.reset()
    quantizer = build_any()
    if not samples(quantizer):
        pytest.skip("compared with eager code above")
    out = torch.compile(quantizer, backend="aot_eager", fullgraph=True)(torch.randn(2, 4, 6, requires_grad=True))
    (out.loss + out.quantized.sum()).backward()
    assert torch.equal(quantizer.decode(out.indices), out.quantized)


def test_it_can_be_exported(build_used):
    quantizer = build_used().eval()
    z = torch.randn(2, 4, 6)
    exported = torch.export.export(quantizer, (z,), strict=True)
    assert torch.equal(exported.module()(z).indices, quantizer(z).indices)


@pytest.mark.parametrize("shape", [(3, 5, 5), (3, 8, 5), (3, 2, 5), (4,)])
def test_a_wrong_channel_count_raises(build_any, shape):
    quantizer = build_any()
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        quantizer(torch.randn(shape))
    assert str(error.value) == (
        f"{type(quantizer).__name__} quantizes vectors of 4 channels along dimension 1, but got shape {shape}. "
        f"Build it for this number of channels, or pass channel_dim for another layout."
    )


def test_indices_out_of_range_raise_and_minus_one_decodes_to_zeros(build_used):
    quantizer = build_used()
    shape = (2, 3, *quantizer.index_shape)
    for low, high in [(0, 16), (-2, 3)]:
        indices = torch.full(shape, high)
        indices[0, 0] = low
        with pytest.raises(ValueError) as error:  # noqa: PT011
            quantizer.decode(indices)
        assert str(error.value) == (
            f"{type(quantizer).__name__} takes indices in [0, 16), or -1 for masked positions, but got values from "
            f"{low} to {high}. Were they made with a larger codebook?"
        )
    indices = torch.randint(0, 16, shape)
    indices[1, 2] = -1
    decoded = quantizer.decode(indices).movedim(1, -1)
    assert not decoded[1, 2].any()
    assert decoded[0].any()


def test_a_frozen_codebook_stands_still_in_training(build_any, build_used, state_of, differing):
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


def test_an_unfrozen_codebook_learns_again(build_used, state_of, differing):
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


def test_freezing_keeps_the_inputs_gradient(build_used):
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
