"""Entropies, orthogonality, k-means and index backpropagation against their dense definitions."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from vq_components import functional
from vq_components.functional import _search


@pytest.fixture
def small_tiles(monkeypatch):
    """So that tests of a few vectors go through several tiles of rows and of entries."""
    monkeypatch.setattr(_search, "_TILE_ON_CPU", 64 * 16)


def dense(z, codebook, temperature):
    q = (-(z[:, None] - codebook).square().sum(dim=2) / temperature).softmax(dim=1)
    return torch.special.entr(q).sum(dim=1).mean(), torch.special.entr(q.mean(dim=0)).sum()


@pytest.mark.parametrize("temperature", [0.3, 2.0])
@pytest.mark.parametrize("masked", [False, True])
def test_code_entropies_equal_the_dense_definition(small_tiles, temperature, masked):
    z = torch.randn(70, 3, dtype=torch.float64, requires_grad=True)
    codebook = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(70) > 0.4 if masked else None
    result = functional.code_entropies(z, codebook, temperature=temperature, mask=mask)
    expected = dense(z if mask is None else z[mask], codebook, temperature)
    torch.testing.assert_close(tuple(result), expected)
    for value, other in zip(result, expected, strict=True):
        torch.testing.assert_close(
            torch.autograd.grad(value, (z, codebook), retain_graph=True),
            torch.autograd.grad(other, (z, codebook), retain_graph=True),
        )


@pytest.mark.parametrize("bits", [1, 2, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_bit_entropies_equal_those_of_all_entries(bits, masked):
    z = torch.randn(30, bits, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(30) > 0.4 if masked else None
    entries = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=bits)), dtype=torch.float64)
    result = functional.bit_entropies(z, temperature=1.3, mask=mask)
    expected = functional.code_entropies(z, entries, temperature=1.3, mask=mask)
    torch.testing.assert_close(tuple(result), tuple(expected))
    for value, other in zip(result, expected, strict=True):
        torch.testing.assert_close(
            torch.autograd.grad(value, z, retain_graph=True)[0], torch.autograd.grad(other, z, retain_graph=True)[0]
        )


@pytest.mark.parametrize("kind", ["code", "bit"])
def test_entropies_at_their_bounds(kind):
    def entropies(z, temperature):
        if kind == "bit":
            return functional.bit_entropies(z, temperature=temperature)
        entries = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)))
        return functional.code_entropies(z, entries, temperature=temperature)

    every = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)))
    for z, temperature, sample, batch in [
        (every, 1e-3, 0, math.log(16)),  # certain, and all used alike
        (every[:1], 1e-3, 0, 0),
        (torch.zeros(5, 4), 1.0, math.log(16), math.log(16)),
        (torch.zeros(0, 4), 1.0, 0, 0),
    ]:
        z = z.clone().requires_grad_()
        result = entropies(z, temperature)
        (result.sample - result.batch).backward()
        assert result.sample.item() == pytest.approx(sample, abs=1e-5)
        assert result.batch.item() == pytest.approx(batch, abs=1e-5)
        assert z.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["code", "bit"])
def test_what_is_masked_influences_no_entropy(kind):
    clean, mask = torch.randn(20, 4), torch.rand(20) > 0.4
    results = []
    for garbage in (0.0, 1e4, torch.nan, torch.inf):
        z = torch.where(mask[:, None], clean, garbage).requires_grad_()
        if kind == "bit":
            result = functional.bit_entropies(z, temperature=1.0, mask=mask)
        else:
            result = functional.code_entropies(z, torch.ones(3, 4), temperature=1.0, mask=mask)
        (result.sample - result.batch).backward()
        results.append((tuple(result), z.grad))
        torch.testing.assert_close(results[-1], results[0], rtol=0, atol=0)


def test_half_precision_and_autocast_change_no_entropy():
    z, codebook = torch.randn(20, 4).bfloat16(), torch.randn(9, 4).bfloat16()
    expected = functional.code_entropies(z.float(), codebook.float(), temperature=1.0)
    bits = functional.bit_entropies(z.float(), temperature=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(functional.code_entropies(z, codebook, temperature=1.0), expected, rtol=0, atol=0)
        torch.testing.assert_close(functional.bit_entropies(z, temperature=1.0), bits, rtol=0, atol=0)


@pytest.mark.parametrize(("size", "dim"), [(3, 5), (7, 3), (1, 4)])
def test_orthogonality_equals_the_matrix_of_cosines(size, dim):
    codebook = torch.randn(size, dim, dtype=torch.float64, requires_grad=True)
    unit = F.normalize(codebook, dim=1)
    expected = (unit @ unit.T - torch.eye(size)).square().mean()
    loss = functional.orthogonality_loss(codebook)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, codebook), torch.autograd.grad(expected, codebook))


def dense_index(z, codebook):
    p = (z @ codebook.T).softmax(dim=1)
    hard = F.one_hot(p.argmax(dim=1), len(codebook)).to(z.dtype)
    return (hard - p.detach() + p) @ codebook, p.argmax(dim=1)


@pytest.mark.parametrize(("n", "k"), [(70, 50), (1, 1), (3, 100), (0, 5)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_index_backpropagation_equals_the_dense_softmax(small_tiles, n, k, scale):
    z = (scale * torch.randn(n, 3, dtype=torch.float64)).requires_grad_()
    codebook = torch.randn(k, 3, dtype=torch.float64, requires_grad=True)
    quantized, indices = functional.index_backprop(z, codebook)
    expected, expected_indices = dense_index(z, codebook)
    assert torch.equal(indices, expected_indices)
    assert torch.equal(quantized, codebook[indices])
    gradient = torch.randn_like(quantized)
    torch.testing.assert_close(
        torch.autograd.grad(quantized, (z, codebook), gradient), torch.autograd.grad(expected, (z, codebook), gradient)
    )


def test_index_backpropagation_stays_finite_at_huge_scores():
    z, codebook = (1e3 * torch.randn(20, 3)).requires_grad_(), (1e3 * torch.randn(9, 3)).requires_grad_()
    functional.index_backprop(z, codebook)[0].sum().backward()
    assert z.grad.isfinite().all()
    assert codebook.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_the_operators_of_index_backpropagation_say_the_truth_about_themselves():
    z, codebook = torch.randn(6, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    torch.library.opcheck(torch.ops.vq_components.index_backprop.default, (z, codebook))


def lloyd(vectors, centers, iterations):
    for _ in range(iterations):
        nearest = torch.cdist(vectors, centers).argmin(dim=1)
        centers = torch.stack([vectors[nearest == k].mean(dim=0) for k in range(len(centers))])
    return centers


def test_kmeans_is_lloyds_algorithm_from_drawn_vectors():
    vectors = torch.randn(60, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    start = vectors[torch.randperm(60, generator=torch.Generator().manual_seed(5))[:4]]
    torch.testing.assert_close(functional.kmeans(vectors, 4, generator=generator), lloyd(vectors, start, 10))


def test_kmeans_is_decided_by_its_generator():
    vectors = torch.randn(60, 3)
    one, other = (functional.kmeans(vectors, 8, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(one, other)
    state = torch.get_rng_state()
    functional.kmeans(vectors, 8, generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)


def test_kmeans_leaves_no_center_unused():
    """Most vectors are equal, so most of those drawn are: all but the first of them start empty."""
    vectors = torch.cat([torch.zeros(90, 2), 10 * torch.randn(10, 2)])
    centers = functional.kmeans(vectors, 8, generator=torch.Generator().manual_seed(0), iterations=20)
    assert len(functional.nearest_code(vectors, centers).unique()) == 8


def test_kmeans_lowers_the_error_with_every_move():
    vectors = torch.randn(200, 4)
    errors = []
    for iterations in range(6):
        centers = functional.kmeans(vectors, 10, iterations=iterations, generator=torch.Generator().manual_seed(1))
        errors.append(torch.cdist(vectors, centers).min(dim=1).values.square().sum())
    assert errors == sorted(errors, reverse=True)


def test_arguments_that_do_not_fit_raise():
    z, codebook = torch.randn(5, 3), torch.randn(4, 3)
    name = "takes a bool mask of shape (5,), but got torch.float32 of (5,)."
    cases = [
        (
            lambda: functional.bit_entropies(z[0], temperature=1.0),
            "bit_entropies takes vectors (N, D), but got shape (3,). Flatten them.",
        ),
        (
            lambda: functional.bit_entropies(z, temperature=0.0),
            "bit_entropies needs a positive temperature, but got 0.0.",
        ),
        (lambda: functional.bit_entropies(z, temperature=1.0, mask=torch.ones(5)), f"bit_entropies {name}"),
        (
            lambda: functional.code_entropies(z, codebook[:, :2], temperature=1.0),
            "code_entropies compares vectors (N, D) with a codebook (K, D) of at least one entry, "
            "but got shapes (5, 3) and (4, 2).",
        ),
        (
            lambda: functional.orthogonality_loss(z[:0]),
            "orthogonality_loss takes a codebook (K, D) of at least one entry, but got shape (0, 3).",
        ),
        (
            lambda: functional.index_backprop(z, codebook[:, :2]),
            "index_backprop compares vectors (N, D) with a codebook (K, D) of at least one entry, "
            "but got shapes (5, 3) and (4, 2). Flatten z to vectors (N, D).",
        ),
        (
            lambda: functional.kmeans(z, 6),
            "kmeans finds 1 to N clusters of vectors (N, D), but got shape (5, 3) and num_clusters=6.",
        ),
        (lambda: functional.kmeans(z * torch.nan, 2), "kmeans takes finite vectors, but got NaN or infinite values."),
    ]
    for call, message in cases:
        with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
            call()
        assert str(error.value) == message
    with pytest.raises(TypeError) as error:
        functional.index_backprop(z, codebook.double())
    assert str(error.value) == (
        "index_backprop takes float32 or float64 tensors of one dtype, but got torch.float32 and torch.float64. "
        "Convert both with .float()."
    )
    with pytest.raises(TypeError) as error:
        functional.kmeans(z.long(), 2)
    assert str(error.value) == "kmeans takes floating point vectors, but got torch.int64. Convert them with .float()."
