"""Cosine distance: only directions count, on both sides."""

import numpy as np
import pytest
import torch

from vq_components import DeadCodeRevival, EMAVectorQuantizer, VectorQuantizer

BOTH = pytest.mark.parametrize("kind", [VectorQuantizer, EMAVectorQuantizer])


def directions(vectors):
    return vectors / vectors.norm(dim=1, keepdim=True)


def given(kind, **settings):
    quantizer = kind(11, 3, distance="cosine", **settings).double()
    quantizer.set_codebook_(torch.randn(11, 3))
    return quantizer


@BOTH
def test_each_vector_gets_the_entry_at_the_smallest_angle(kind):
    quantizer = given(kind)
    z = 5 * torch.randn(30, 3, dtype=torch.float64)
    out = quantizer(z)
    cosine = directions(z) @ directions(quantizer.embedding.weight.detach()).T
    assert torch.equal(out.indices, cosine.argmax(dim=1))
    torch.testing.assert_close(out.quantized.norm(dim=1), torch.ones(30, dtype=torch.float64))
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(11, dtype=torch.float64))
    torch.testing.assert_close(out.quantized, quantizer.codebook[out.indices].detach())
    assert torch.equal(quantizer.encode(z * torch.rand(30, 1)), out.indices)


@pytest.mark.parametrize("weights", [(0.25, 1.0), (2.0, 0.0), (0.0, 1.0)])
def test_loss_and_gradients_pass_through_both_normalizations(weights):
    commitment_weight, codebook_weight = weights
    quantizer = given(VectorQuantizer, commitment_weight=commitment_weight, codebook_weight=codebook_weight)
    z = torch.randn(30, 3, dtype=torch.float64, requires_grad=True)
    own = z.detach().clone().requires_grad_()
    weight = quantizer.embedding.weight.detach().clone().requires_grad_()
    out = quantizer(z)

    unit, entries = directions(own), directions(weight)[out.indices]
    loss = commitment_weight * (unit - entries.detach()).square().mean()
    loss = loss + codebook_weight * (unit.detach() - entries).square().mean()
    gradient = torch.randn_like(z)
    torch.testing.assert_close(out.loss, loss)
    (out.loss + (out.quantized * gradient).sum()).backward()
    (loss + (unit * gradient).sum()).backward()
    torch.testing.assert_close(z.grad, own.grad)
    torch.testing.assert_close(quantizer.embedding.weight.grad, weight.grad)
    torch.testing.assert_close((z.grad * z).sum(dim=1), torch.zeros(30, dtype=torch.float64))  # no pull on the length


def test_moving_averages_are_of_directions_and_end_on_the_sphere(reference):
    quantizer = given(EMAVectorQuantizer, decay=0.7, revival=None)
    slow = reference.MovingAverages(quantizer.codebook.numpy(), decay=0.7, eps=1e-5, past=1)
    for _ in range(4):
        z = 3 * torch.randn(40, 3, dtype=torch.float64)
        out = quantizer(z)
        quantizer.update_()
        slow.update(directions(z).numpy(), out.indices.numpy())
        slow.entries /= np.linalg.norm(slow.entries, axis=1, keepdims=True)
        np.testing.assert_allclose(quantizer.codebook, slow.entries, rtol=1e-10)


@BOTH
def test_start_and_revival_take_directions(kind):
    quantizer = kind(32, 3, distance="cosine", revival=DeadCodeRevival(threshold=0.9, decay=0.0))
    for _ in range(4):
        z = torch.randn(200, 3) * 30 + torch.tensor([0.0, 0.0, 300.0])
        out = quantizer(z)
        assert (quantizer.codebook[:, 2] > 0.8).all()  # all of the data is on this side
        assert out.terms["commitment"] < 0.1
    quantizer.update_()
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(32))
    torch.testing.assert_close(quantizer.embedding.candidates.norm(dim=1).max(), torch.tensor(1.0))


@BOTH
def test_a_vector_of_zeros_is_no_nan(kind):
    quantizer = given(kind)
    z = torch.zeros(4, 3, requires_grad=True)
    out = quantizer(z)
    (out.loss + out.quantized.sum()).backward()
    assert out.loss.isfinite()
    assert z.grad.isfinite().all()


@BOTH
def test_a_file_of_raw_entries_is_read_as_their_directions(kind):
    quantizer = kind(11, 3, distance="cosine")
    entries = 7 * torch.randn(11, 3)
    quantizer.load_state_dict({"embedding.weight": entries})
    torch.testing.assert_close(quantizer.codebook, directions(entries))
    out = quantizer(torch.randn(30, 3))
    assert torch.equal(quantizer.decode(out.indices), out.quantized)


@BOTH
def test_another_distance_is_refused(kind):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        kind(11, 3, distance="manhattan")
    assert str(error.value) == "distance must be 'euclidean' or 'cosine', but got 'manhattan'."


@BOTH
def test_a_start_with_fewer_vectors_than_entries_keeps_directions(kind):
    quantizer = kind(11, 3, distance="cosine", revival=None).double()
    quantizer(torch.randn(5, 3))
    weight = quantizer.embedding.weight.detach()
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(11, dtype=torch.float64))


def test_averages_of_a_file_count_its_entries_as_directions():
    entries = torch.randn(11, 3, dtype=torch.float64)
    z = torch.randn(40, 3, dtype=torch.float64)
    quantizer = EMAVectorQuantizer(11, 3, distance="cosine", revival=None).double()
    quantizer.load_state_dict({"embedding.weight": 5 * entries})
    expected = EMAVectorQuantizer(11, 3, distance="cosine", revival=None).double()
    expected.set_codebook_(entries)
    for module in (quantizer, expected):
        module(z)
        module.update_()
    assert not torch.equal(expected.codebook, directions(entries))
    torch.testing.assert_close(quantizer.codebook, expected.codebook, rtol=0, atol=1e-4)
