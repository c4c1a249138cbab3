"""Projected, residual and grouped quantizers against plain loops, and the gradients that wrappers often lose."""

import copy

import pytest
import torch
from torch import nn

from vq_components import (
    FSQ,
    EMAVectorQuantizer,
    GroupedQuantizer,
    GumbelQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
)


def vectors(count, size=16, dim=4, **settings):
    """Quantizers in float64 with entries of their own, each finer than the one before."""
    quantizers = []
    for number in range(count):
        quantizer = VectorQuantizer(size, dim, revival=None, **settings).double()
        quantizer.set_codebook_(torch.randn(size, dim) * 0.5**number)
        quantizers.append(quantizer)
    return quantizers


def greedy(z, codebooks):
    """Residual quantization of float64 vectors, one at a time."""
    indices, errors = [], []
    for row in z:
        residual, own, error = row.clone(), [], []
        for codebook in codebooks:
            k = int(torch.tensor([(residual - entry).square().sum() for entry in codebook]).argmin())
            residual = residual - codebook[k]
            own.append(k)
            error.append(residual.clone())
        indices.append(own)
        errors.append(torch.stack(error))
    return torch.tensor(indices), torch.stack(errors, dim=1)  # (N, Q), (Q, N, D)


def test_residual_equals_a_greedy_loop():
    quantizer = ResidualQuantizer(vectors(3))
    z = torch.randn(20, 4, dtype=torch.float64)
    codebooks = [stage.codebook.detach() for stage in quantizer.quantizers]
    indices, errors = greedy(z, codebooks)
    out = quantizer(z)
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.quantized, z - errors[-1])
    expected = sum(error.square().mean() for error in errors)
    torch.testing.assert_close(out.loss, 1.25 * expected)
    torch.testing.assert_close(out.terms["commitment"], expected.float())


@pytest.mark.parametrize("weight", [0.25, 2.0])
def test_every_stages_commitment_reaches_the_encoder(weight):
    """Entries that are not detached in the residual leave every stage but the first without a gradient."""
    quantizer = ResidualQuantizer(vectors(3, commitment_weight=weight, codebook_weight=0.0))
    z = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    _, errors = greedy(z.detach(), [stage.codebook.detach() for stage in quantizer.quantizers])
    (gradient,) = torch.autograd.grad(quantizer(z).loss, z)
    torch.testing.assert_close(gradient, weight * 2 * errors.sum(dim=0) / z.numel())


def test_each_codebook_learns_from_its_own_residual():
    quantizer = ResidualQuantizer(vectors(2, commitment_weight=0.0))
    z = torch.randn(20, 4, dtype=torch.float64)
    indices, errors = greedy(z, [stage.codebook.detach() for stage in quantizer.quantizers])
    quantizer(z).loss.backward()
    for q, stage in enumerate(quantizer.quantizers):
        expected = torch.zeros(16, 4, dtype=torch.float64).index_add_(0, indices[:, q], -2 * errors[q] / z.numel())
        torch.testing.assert_close(stage.codebook.grad, expected)


def test_the_outputs_gradient_goes_through_a_residual_quantizer_once():
    quantizer = ResidualQuantizer(vectors(3))
    z = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn_like(z)
    assert torch.equal(torch.autograd.grad(quantizer(z).quantized, z, gradient)[0], gradient)


def test_omitted_stages_decode_to_the_partial_sum():
    quantizer = ResidualQuantizer(vectors(3))
    indices = torch.randint(0, 16, (2, 5, 3))
    parts = [stage.decode(indices[..., q]) for q, stage in enumerate(quantizer.quantizers)]
    for used in range(4):
        coarse = torch.where(torch.arange(3) < used, indices, -1)
        assert torch.equal(quantizer.decode(coarse), sum(parts[:used], torch.zeros(2, 4, 5)))


def test_quantizer_dropout_uses_the_first_stages_alone():
    quantizer = ResidualQuantizer(vectors(3), dropout=1.0)
    z = torch.randn(30, 4, dtype=torch.float64)
    codebooks = [stage.codebook.detach() for stage in quantizer.quantizers]
    counts = torch.zeros(3)
    for _ in range(60):
        before = [stage.embedding.pending_counts.clone() for stage in quantizer.quantizers]
        quantizer._update()
        out = quantizer(z)
        used = (out.indices >= 0).all(dim=0)
        count = int(used.sum())
        assert used.tolist() == [q < count for q in range(3)]
        assert not (out.indices[:, count:] >= 0).any()
        counts[count - 1] += 1
        indices, errors = greedy(z, codebooks[:count])
        assert torch.equal(out.indices[:, :count], indices)
        torch.testing.assert_close(out.quantized, z - errors[-1])
        torch.testing.assert_close(out.loss, 1.25 * sum(error.square().mean() for error in errors))
        torch.testing.assert_close(
            out.terms["usage"], torch.stack([torch.tensor(len(i.unique()) / 16) for i in indices.T]).mean()
        )
        for q, stage in enumerate(quantizer.quantizers):
            assert stage.embedding.pending_counts.sum() == (30 if q < count else 0)
    assert before
    assert (counts > 8).all()  # uniform: 20 each
    quantizer.eval()
    assert (quantizer(z).indices >= 0).all()


def test_dropout_of_zero_draws_no_random_number():
    quantizer = ResidualQuantizer(vectors(2))
    state = torch.get_rng_state()
    quantizer(torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_share_of_forwards_that_drop_is_the_probability():
    quantizer = ResidualQuantizer(vectors(8), dropout=0.25)
    z = torch.randn(1, 4, dtype=torch.float64)
    whole = sum(bool((quantizer(z).indices >= 0).all()) for _ in range(200))
    assert 130 < whole < 186  # 200 * (0.75 + 0.25 / 8) = 156


def test_grouped_equals_its_groups_one_by_one():
    groups = vectors(1, dim=3) + vectors(1, dim=2)
    quantizer = GroupedQuantizer(copy.deepcopy(groups))
    z = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    own = z.detach().clone().requires_grad_()
    out = quantizer(z)
    parts = [group(piece) for group, piece in zip(groups, own.split([3, 2], dim=1), strict=True)]
    assert torch.equal(out.quantized, torch.cat([part.quantized for part in parts], dim=1))
    assert torch.equal(out.indices, torch.stack([part.indices for part in parts], dim=-1))
    torch.testing.assert_close(out.loss, (parts[0].loss + parts[1].loss) / 2)
    for key in out.terms:
        torch.testing.assert_close(out.terms[key], (parts[0].terms[key] + parts[1].terms[key]) / 2)
    (out.loss + out.quantized.sum()).backward()
    ((parts[0].loss + parts[1].loss) / 2 + sum(part.quantized.sum() for part in parts)).backward()
    torch.testing.assert_close(z.grad, own.grad)


def test_projected_is_linear_quantizer_linear():
    (inner,) = vectors(1)
    quantizer = ProjectedQuantizer(inner, 6).double()
    plain = copy.deepcopy(quantizer)
    z = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    own = z.detach().clone().requires_grad_()
    out = quantizer(z)
    expected = plain.quantizer(plain.project_in(own))
    reconstructed = plain.project_out(expected.quantized)
    torch.testing.assert_close(out.quantized, reconstructed)
    assert torch.equal(out.indices, expected.indices)
    (out.loss + out.quantized.square().sum()).backward()
    (expected.loss + reconstructed.square().sum()).backward()
    torch.testing.assert_close(z.grad, own.grad)
    for parameter, other in zip(quantizer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)
        assert parameter.grad.any()
    torch.testing.assert_close(quantizer.codebook, plain.project_out(inner.codebook))


def test_a_mask_in_another_width_means_the_same():
    """The commitment term compares with the projected vectors, and counts the live ones alone."""
    quantizer = ProjectedQuantizer(VectorQuantizer(16, 2), 4, channel_dim=-1).eval()
    z, mask = torch.randn(3, 5, 4), torch.rand(3, 5) > 0.5
    out = quantizer(z, mask)
    inner = quantizer.project_in(z)[mask]
    error = (inner - quantizer.quantizer.decode(out.indices[mask])).square().mean()
    torch.testing.assert_close(out.terms["commitment"], error)


def test_updates_reach_nested_parts():
    parts = [EMAVectorQuantizer(8, 2) for _ in range(4)]
    quantizer = ProjectedQuantizer(GroupedQuantizer([ResidualQuantizer(parts[:2]), ResidualQuantizer(parts[2:])]), 6)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    handle = quantizer.update_after(optimizer)
    for count in (1, 2):
        quantizer(torch.randn(30, 6))
        quantizer(torch.randn(30, 6))
        assert [int(part.embedding.updates) for part in parts] == [count - 1] * 4
        optimizer.step()
        assert [int(part.embedding.updates) for part in parts] == [count] * 4
    handle.remove()
    quantizer(torch.randn(30, 6))
    quantizer.update_()
    assert [int(part.embedding.updates) for part in parts] == [3] * 4
    assert all(part.embedding.update_is_manual for part in parts)


@pytest.mark.parametrize("kind", [ResidualQuantizer, GroupedQuantizer])
def test_parts_that_do_not_fit_raise(kind):
    name = kind.__name__
    one, other = VectorQuantizer(16, 4), VectorQuantizer(8, 4)
    cases = {
        (): f"{name} needs at least one quantizer, but got none.",
        (one, one): f"{name} needs distinct quantizers, but got one of them twice. Build each on its own.",
        (one, other): f"{name} needs quantizers of one codebook_size and index_shape, but got [(16, ()), (8, ())].",
    }
    for parts, message in cases.items():
        with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
            kind(list(parts))
        assert str(error.value) == message
    with pytest.raises(TypeError) as error:
        kind([one]).codebook  # noqa: B018
    assert str(error.value) == (
        f"{name} has no single codebook. Read those of its parts: [part.codebook for part in quantizer.quantizers]."
    )


def test_residual_stages_that_do_not_fit_raise():
    cases = [
        (
            [VectorQuantizer(16, 4), FSQ((4, 4))],
            {},
            "ResidualQuantizer needs stages of one width, in and out, but got [(4, 4), (2, 2)].",
        ),
        ([VectorQuantizer(16, 4)], {"dropout": 1.5}, "ResidualQuantizer takes dropout in [0, 1], but got 1.5."),
    ]
    for stage in (ProjectedQuantizer(VectorQuantizer(16, 2), 4), GumbelQuantizer(16, 4, in_channels=4)):
        message = (
            f"ResidualQuantizer gives the output's gradient to its input alone, but stage 1, {type(stage).__name__}, "
            f"has parameters that learn from it. Wrap the whole instead, as "
            f"ProjectedQuantizer(ResidualQuantizer(...), dim)."
        )
        cases.append(([VectorQuantizer(16, 4), stage], {}, message))
    for parts, settings, message in cases:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            ResidualQuantizer(parts, **settings)
        assert str(error.value) == message


def test_each_stage_starts_from_what_the_one_before_it_leaves():
    """The vectors that the first stage starts from leave zero: a second stage that took them would never be of use."""
    stages = [VectorQuantizer(16, 4) for _ in range(3)]
    z = torch.randn(64, 4)
    ResidualQuantizer(stages)(z)
    left = z
    for stage in stages:
        assert stage.codebook.abs().sum(dim=1).min() > 0
        out = stage.eval()(left)
        assert len(out.indices.unique()) > 4
        left = left - out.quantized
