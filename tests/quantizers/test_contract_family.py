"""The contract that the whole family keeps, wrappers included: values, masks, layouts. Life is in the file beside."""

import copy

import pytest
import torch

from vq_components import QuantizerOutput

TERMS = {"commitment", "codebook", "perplexity", "usage"}
LAYOUTS = [((5, 4), 1), ((3, 4, 5), 1), ((3, 4, 5, 2), 1), ((3, 5, 4), -1), ((3, 5, 4, 2), -2), ((0, 4, 5), 1)]
GARBAGE = [1e4, torch.nan, torch.inf]


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
    torch.manual_seed(1)
    out = quantizer(z)
    torch.manual_seed(1)
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


def test_half_precision_is_computed_in_float32(build_used, results):
    quantizer = build_used()
    z = torch.randn(3, 4, 5).bfloat16()
    out, grad, _ = results(copy.deepcopy(quantizer), z)
    expected, expected_grad, _ = results(quantizer, z.float())
    assert torch.equal(out.indices, expected.indices)
    assert torch.equal(out.quantized, expected.quantized.bfloat16())
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(grad.float(), expected_grad, rtol=2e-2, atol=2e-2)


def test_autocast_changes_nothing(build_used, differing, results):
    quantizer = build_used()
    other = copy.deepcopy(quantizer)
    z = torch.randn(3, 4, 5)
    expected = results(other, z)
    out = results(quantizer, z, autocast=True)
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
def test_what_is_under_the_mask_influences_nothing(build_any, build_used, differing, training, garbage, results):
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
def test_a_batch_without_a_live_vector_costs_and_moves_nothing(
    build_used, state_of, differing, shape, training, results
):
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
    torch.manual_seed(1)
    out = quantizer(dirty)
    torch.manual_seed(1)
    expected = other(z, live)
    assert out.loss.isnan()
    assert torch.equal(out.indices[live], expected.indices[live])
    torch.testing.assert_close(out.quantized[live], expected.quantized[live], rtol=0, atol=0)
    assert (out.indices[7] <= 0).all()
    for module in (quantizer, other):
        module.update_()
    assert not differing(quantizer, other)


def test_a_vector_that_is_not_finite_spoils_no_other_gradient(build_used, results):
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
