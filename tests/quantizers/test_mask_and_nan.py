"""The contract of every quantizer, part 3: what is masked or not finite influences nothing."""

import copy

import pytest
import torch

from vq_components import EMAVectorQuantizer, VectorQuantizer

SHAPES = [(30, 4), (2, 4, 15), (2, 4, 5, 3)]
GARBAGE = [1e4, torch.nan, torch.inf, -torch.inf]
BAD = [torch.nan, torch.inf, -torch.inf]


def rows(z):
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def batch_with_mask(shape):
    z = torch.randn(shape)
    mask = torch.rand(shape[0], *shape[2:]) > 0.4
    return z, mask


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("started", [True, False])
def test_what_is_under_the_mask_influences_nothing(build, build_started, differing, training, garbage, shape, started):
    quantizer = (build_started if started else build)().train(training)
    other = copy.deepcopy(quantizer)
    z, mask = batch_with_mask(shape)
    dirty = torch.where(mask.unsqueeze(1), z, garbage).requires_grad_()
    z.requires_grad_()

    expected, out = other(z, mask), quantizer(dirty, mask)
    for result in (expected, out):
        (result.loss + (result.quantized * torch.arange(z.numel()).view(shape)).sum()).backward()

    for name in ("quantized", "indices", "loss"):
        assert torch.equal(getattr(out, name), getattr(expected, name)), name
    assert out.loss.isfinite()
    assert out.terms == expected.terms
    assert torch.equal(dirty.grad, z.grad)
    assert torch.equal(quantizer.encode(dirty, mask), out.indices)
    if quantizer.codebook.requires_grad:
        assert torch.equal(quantizer.codebook.grad, other.codebook.grad)
    assert not differing(quantizer, other)
    for module in (quantizer, other):
        module.update_()
    assert not differing(quantizer, other)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("garbage", [0.0, torch.nan])
def test_masked_positions_are_zero_in_output_and_gradient(build_started, training, garbage):
    quantizer = build_started().train(training)
    z, mask = batch_with_mask((2, 4, 5, 3))
    dead = ~mask
    z = torch.where(mask.unsqueeze(1), z, garbage).requires_grad_()
    out = quantizer(z, mask)
    (out.loss + out.quantized.sum()).backward()
    assert (out.indices[dead] == -1).all()
    assert (out.indices[mask] >= 0).all()
    assert not rows(out.quantized)[dead.flatten()].any()
    assert not rows(z.grad)[dead.flatten()].any()
    assert torch.equal(quantizer.decode(out.indices), out.quantized)


@pytest.mark.parametrize("training", [True, False])
def test_a_mask_equals_leaving_the_vectors_out(build_started, differing, training):
    quantizer = build_started().train(training)
    quantizer.update_()
    other = copy.deepcopy(quantizer)
    z, mask = batch_with_mask((2, 4, 5, 3))
    live = rows(z)[mask.flatten()].requires_grad_()
    z.requires_grad_()

    out, expected = quantizer(z, mask), other(live)
    for result, weight in ((out, torch.ones_like(z)), (expected, torch.ones_like(live))):
        (result.loss + (result.quantized * weight).sum()).backward()

    assert torch.equal(out.indices[mask], expected.indices)
    assert torch.equal(rows(out.quantized)[mask.flatten()], expected.quantized)
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(out.terms, expected.terms)
    torch.testing.assert_close(rows(z.grad)[mask.flatten()], live.grad)
    assert not differing(quantizer, other)


@pytest.mark.parametrize("started", [True, False])
def test_a_mask_that_is_all_true_is_no_mask(build, build_started, differing, started):
    quantizer = (build_started if started else build)()
    other = copy.deepcopy(quantizer)
    z = torch.randn(2, 4, 5)
    out, expected = quantizer(z, torch.ones(2, 5, dtype=torch.bool)), other(z)
    assert torch.equal(out.quantized, expected.quantized)
    assert torch.equal(out.loss, expected.loss)
    assert not differing(quantizer, other)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("started", [True, False])
def test_a_batch_without_a_live_vector_is_an_empty_one(build, build_started, state_of, differing, training, started):
    """Defect 12."""
    quantizer = (build_started if started else build)().train(training)
    quantizer.update_()
    before = state_of(quantizer)
    z = torch.full((2, 4, 5), torch.nan, requires_grad=True)
    quantized, indices, loss, terms = quantizer(z, torch.zeros(2, 5, dtype=torch.bool))
    (loss + quantized.sum()).backward()
    assert loss == 0
    assert terms == {"commitment": 0, "codebook": 0, "perplexity": 1, "usage": 0}
    assert not quantized.any()
    assert (indices == -1).all()
    assert not z.grad.any()
    quantizer.update_()
    assert not differing(quantizer, before)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("started", [True, False])
def test_a_vector_that_is_not_finite_enters_no_statistics(build, build_started, differing, bad, started):
    """One bad token must not spread: the state is that of a batch in which it is masked."""
    quantizer = (build_started if started else build)()
    other = copy.deepcopy(quantizer)
    z = torch.randn(40, 4)
    live = torch.ones(40, dtype=torch.bool)
    live[[3, 17]] = False
    dirty = z.clone()
    dirty[3, 1] = bad
    dirty[17] = bad

    out, expected = quantizer(dirty), other(z, live)

    assert torch.equal(out.quantized[live], expected.quantized[live])
    assert torch.equal(out.indices[live], expected.indices[live])
    assert out.indices[~live].tolist() == [0, 0]
    assert torch.equal(quantizer.encode(dirty), out.indices)
    assert torch.equal(quantizer.decode(out.indices), out.quantized)
    assert not out.loss.isfinite()
    torch.testing.assert_close(out.terms["codebook"], expected.terms["codebook"])
    assert not differing(quantizer, other)
    for module in (quantizer, other):
        module.update_()
    assert not differing(quantizer, other)
    assert quantizer.codebook.isfinite().all()


@pytest.mark.parametrize("bad", BAD)
def test_a_vector_that_is_not_finite_makes_the_loss_nan(build_started, bad):
    out = build_started()(torch.tensor([[0.0, bad, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]]))
    assert out.loss.isnan()
    assert out.terms["commitment"].isnan()
    assert out.terms["codebook"].isfinite()


@pytest.mark.parametrize("bad", BAD)
def test_a_vector_that_is_not_finite_spoils_no_other_gradient(build_started, bad):
    quantizer = build_started()
    z = torch.randn(40, 4)
    z[3, 1] = bad
    z.requires_grad_()
    out = quantizer(z)
    (out.loss + out.quantized.sum()).backward()
    others = torch.arange(40) != 3
    torch.testing.assert_close(z.grad[others], 1 + 0.25 * 2 * (z - out.quantized).detach()[others] / z.numel())
    assert not z.grad[3].isfinite().all()
    if quantizer.codebook.requires_grad:
        assert quantizer.codebook.grad.isfinite().all()


def test_a_vector_that_is_not_finite_is_not_counted_as_used(build_started):
    out = build_started()(torch.full((5, 4), torch.nan))
    assert out.terms["usage"] == 0
    assert out.terms["perplexity"] == 1


@pytest.mark.parametrize("bad", BAD)
def test_a_skipped_nan_step_leaves_a_working_quantizer(build_started, bad):
    quantizer = build_started()
    quantizer(torch.full((5, 4), bad))
    quantizer(torch.randn(100, 4))
    quantizer.update_()
    out = quantizer(torch.randn(100, 4))
    assert out.loss.isfinite()
    assert quantizer.codebook.isfinite().all()


@pytest.mark.parametrize("build", [VectorQuantizer, EMAVectorQuantizer])
@pytest.mark.parametrize("size", [3e19, -1e30])
def test_a_finite_vector_whose_square_overflows_is_not_counted(build, size):
    torch.manual_seed(0)
    vq = build(16, 8)
    vq(torch.randn(100, 8))
    vq.update_()
    z = torch.randn(100, 8)
    z[3] = size
    assert vq(z).loss.isnan()
    assert vq.embedding.pending_counts.sum() == 99
    vq.update_()
    assert vq.codebook.abs().max() < 10
    assert vq.embedding.usage.isfinite().all()
    assert "too large to be squared, and were left out: 1" in vq.health(z).reasons[0]
