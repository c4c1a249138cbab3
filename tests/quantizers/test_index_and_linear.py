"""Index backpropagation and the linear codebook against their dense definitions."""

import pytest
import torch
from torch.nn import functional as F

from vq_components import IndexBackpropQuantizer, SimVQ


def dense_index(z, codebook, *, index_weight, commitment_weight, codebook_weight):
    """Shi et al. (2024) with the ``N x K`` matrices: quantized, indices, loss."""
    p = (z @ codebook.T).softmax(dim=1)
    hard = F.one_hot(p.argmax(dim=1), len(codebook)).to(z.dtype)
    quantized = (hard - p.detach() + p) @ codebook
    entries = hard @ codebook
    loss = index_weight * (z - quantized).square().mean()
    loss = loss + commitment_weight * (z - entries.detach()).square().mean()
    return quantized, p.argmax(dim=1), loss + codebook_weight * (z.detach() - entries).square().mean()


@pytest.mark.parametrize("weights", [(1.0, 0.25, 1.0), (0.0, 0.7, 0.0), (2.0, 0.0, 0.3)])
def test_index_backpropagation_equals_the_dense_form(weights):
    names = ("index_weight", "commitment_weight", "codebook_weight")
    settings = dict(zip(names, weights, strict=True))
    quantizer = IndexBackpropQuantizer(11, 3, **settings).double()
    quantizer.set_codebook_(torch.randn(11, 3))
    codebook = quantizer.codebook.detach().clone().requires_grad_()
    z = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    own = z.detach().clone().requires_grad_()
    out = quantizer(z)
    quantized, indices, loss = dense_index(own, codebook, **settings)
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.quantized, quantized)
    torch.testing.assert_close(out.loss, loss)
    (out.loss + out.quantized.pow(3).sum()).backward()
    (loss + quantized.pow(3).sum()).backward()
    torch.testing.assert_close(z.grad, own.grad)
    torch.testing.assert_close(quantizer.codebook.grad, codebook.grad)
    assert quantizer.codebook.grad.any(dim=1).all()


def test_a_bad_vector_moves_no_entry():
    quantizer = IndexBackpropQuantizer(11, 3)
    z = torch.randn(20, 3)
    z[4] = torch.nan
    quantizer(z).quantized.sum().backward()
    spoiled = quantizer.codebook.grad.clone()
    quantizer.zero_grad()
    quantizer(z, torch.arange(20) != 4).quantized.sum().backward()
    assert torch.equal(spoiled, quantizer.codebook.grad)


@pytest.mark.parametrize("weights", [(0.25, 1.0), (0.0, 2.0), (1.5, 0.0)])
def test_a_linear_codebook_equals_its_definition(weights):
    commitment_weight, codebook_weight = weights
    quantizer = SimVQ(11, 3, commitment_weight=commitment_weight, codebook_weight=codebook_weight).double()
    frozen = quantizer.embedding.weight.detach().clone()
    weight, bias = (p.detach().clone().requires_grad_() for p in quantizer.embedding_proj.parameters())
    z = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    own = z.detach().clone().requires_grad_()

    out = quantizer(z)
    codebook = frozen @ weight.T + bias
    indices = torch.cdist(own, codebook).argmin(dim=1)
    entries = codebook[indices]
    loss = commitment_weight * (own - entries.detach()).square().mean()
    loss = loss + codebook_weight * (own.detach() - entries).square().mean()

    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.quantized, entries.detach())
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(quantizer.codebook, codebook)
    (out.loss + out.quantized.sum()).backward()
    (loss + own.sum()).backward()
    torch.testing.assert_close(z.grad, own.grad)
    torch.testing.assert_close(quantizer.embedding_proj.weight.grad, weight.grad)
    torch.testing.assert_close(quantizer.embedding_proj.bias.grad, bias.grad)
    assert quantizer.embedding.weight.grad is None


def test_a_step_of_the_linear_map_moves_unused_entries_too():
    quantizer = SimVQ(64, 3)
    before = quantizer.codebook.detach().clone()
    quantizer(torch.randn(1, 3)).loss.backward()
    torch.optim.SGD(quantizer.parameters(), lr=0.1).step()
    assert (quantizer.codebook != before).any(dim=1).all()


@pytest.mark.parametrize("kind", [IndexBackpropQuantizer, SimVQ])
def test_a_codebook_of_ones_own_is_taken_as_it_is(kind):
    quantizer, entries = kind(11, 3), torch.randn(11, 3)
    quantizer.set_codebook_(entries)
    assert torch.equal(quantizer.codebook, entries)
    assert torch.equal(quantizer.decode(torch.arange(11)), entries)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        quantizer.set_codebook_(torch.randn(11, 4))
    assert str(error.value) == "set_codebook_ takes entries of shape (11, 3), but got (11, 4)."
    with pytest.raises(ValueError) as error:  # noqa: PT011
        kind(0, 3)
    assert str(error.value) == (
        "A codebook needs at least one entry and one channel, but got codebook_size=0, codebook_dim=3."
    )
