"""Moving averages against the paper's formulas, entry by entry."""

import numpy as np
import pytest
import torch

from vq_components import EMAVectorQuantizer

SIZE, DIM = 12, 3


def numpy(tensor):
    return tensor.detach().double().numpy().copy()


def build(**settings):
    quantizer = EMAVectorQuantizer(SIZE, DIM, revival=None, **settings)
    quantizer.update_()
    return quantizer


@pytest.mark.parametrize(("decay", "eps"), [(0.99, 1e-5), (0.5, 1e-5), (0.0, 1e-5), (0.9, 0.3)])
@pytest.mark.parametrize("forwards", [1, 3])
@pytest.mark.parametrize("start", ["data", "given"])
def test_updates_equal_the_papers_formulas(reference, decay, eps, forwards, start):
    """The first update of a codebook that starts from data has no past; a given codebook counts once each."""
    quantizer = build(decay=decay, eps=eps).double()
    first = torch.randn(30, DIM, dtype=torch.float64)
    if start == "given":
        quantizer.set_codebook_(torch.randn(SIZE, DIM))
    else:
        quantizer(first)
    expected = reference.MovingAverages(numpy(quantizer.codebook), decay=decay, eps=eps, past=start == "given")
    pending = [numpy(first)] if start == "data" else []
    for _ in range(5):
        for batch in torch.randn(forwards, 8, DIM, dtype=torch.float64):
            quantizer(batch)
            pending.append(numpy(batch))
        z, pending = np.concatenate(pending), []
        expected.update(z, reference.nearest(z, expected.entries))
        quantizer.update_()
        np.testing.assert_allclose(quantizer.codebook, expected.entries, rtol=1e-12)
    np.testing.assert_allclose(quantizer.embedding.cluster_size, expected.sizes, rtol=1e-12)
    np.testing.assert_allclose(quantizer.embedding.embed_avg, expected.sums, rtol=1e-10, atol=1e-14)


def test_float32_stays_close_to_float64():
    quantizer = build()
    quantizer.set_codebook_(torch.randn(SIZE, DIM))
    wide = build().double()
    wide.set_codebook_(quantizer.codebook)
    for _ in range(20):
        z = torch.randn(50, DIM)
        for module in (quantizer, wide):
            module(z)
            module.update_()
    torch.testing.assert_close(quantizer.codebook, wide.codebook.float())


def test_an_entry_without_a_vector_does_not_move_by_a_bit():
    quantizer = build(decay=0.5)
    codebook = torch.randn(SIZE, DIM)
    codebook[5:] += 1e4 * torch.arange(1, SIZE - 4)[:, None]
    quantizer.set_codebook_(codebook)
    for _ in range(200):  # its averages run dry: 0.5 ** 200 is 0 in float32
        quantizer(torch.randn(20, DIM))
        quantizer.update_()
    assert torch.equal(quantizer.codebook[5:], codebook[5:])
    assert not torch.equal(quantizer.codebook[:5], codebook[:5])


def test_an_entry_whose_averages_have_run_dry_goes_to_its_next_vectors():
    quantizer = build(decay=0.5)
    codebook = torch.zeros(SIZE, DIM)
    codebook[5:] = 1e4 * torch.arange(1, SIZE - 4)[:, None]
    quantizer.set_codebook_(codebook)
    for _ in range(200):
        quantizer(torch.randn(20, DIM))
        quantizer.update_()
    quantizer(torch.full((4, DIM), 1.01e4))
    quantizer.update_()
    torch.testing.assert_close(quantizer.codebook[5], torch.full((DIM,), 1.01e4))


@pytest.mark.parametrize("decay", [0.0, 0.99])
def test_after_a_start_from_data_entries_go_straight_to_their_vectors_mean(decay):
    quantizer = build(decay=decay)
    z = torch.randn(200, DIM)
    indices = quantizer(z).indices
    quantizer.update_()
    means = torch.stack([z[indices == k].mean(dim=0) for k in range(SIZE)])
    torch.testing.assert_close(quantizer.codebook, means, rtol=1e-4, atol=1e-4 if decay else 1e-5)


def test_a_codebook_that_stays_put_is_at_the_mean_of_its_vectors():
    quantizer = build(decay=0.9)
    centers = 100 * torch.randn(SIZE, DIM)
    quantizer.set_codebook_(centers + torch.randn(SIZE, DIM))
    z = centers.repeat(10, 1) + torch.randn(10 * SIZE, DIM)
    for _ in range(300):
        quantizer(z)
        quantizer.update_()
    torch.testing.assert_close(quantizer.codebook, z.view(10, SIZE, DIM).mean(dim=0), rtol=1e-4, atol=1e-4)


def test_the_codebook_is_no_parameter():
    quantizer = build()
    assert not list(quantizer.parameters())
    assert not quantizer.codebook.requires_grad
    assert not quantizer(torch.randn(9, DIM)).loss.requires_grad


def test_a_file_of_the_originals_averages_keeps_their_weights():
    """The original's ``embedding.cluster_size`` and ``embedding.embed_avg``."""
    entries, sizes = torch.randn(SIZE, DIM), torch.rand(SIZE) + 0.5
    file = {"weight": entries, "cluster_size": sizes, "embed_avg": entries * sizes[:, None]}
    quantizer = build()
    quantizer.load_state_dict({f"embedding.{name}": tensor for name, tensor in file.items()}, strict=True)
    for name, tensor in file.items():
        torch.testing.assert_close(quantizer.state_dict()[f"embedding.{name}"], tensor)
    assert quantizer.embedding.started


@pytest.mark.parametrize(("decay", "eps"), [(1.0, 1e-5), (-0.1, 1e-5), (0.9, 0.0), (0.9, -1.0)])
def test_settings_out_of_range_are_refused(decay, eps):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        EMAVectorQuantizer(SIZE, DIM, decay=decay, eps=eps)
    assert str(error.value) == (
        f"EMAVectorQuantizer needs decay in [0, 1) and a positive eps, but got decay={decay}, eps={eps}."
    )
