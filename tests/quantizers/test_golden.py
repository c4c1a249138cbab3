"""Values: the original's own, and those of a slow version in float64."""

import numpy as np
import pytest
import torch

from vq_components import EMAVectorQuantizer, VectorQuantizer

WEIGHTS = {
    "paper": {"commitment_weight": 0.25, "codebook_weight": 1.0},
    "legacy": {"commitment_weight": 1.0, "codebook_weight": 0.25},
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("training", [True, False])
def test_the_originals_values_are_reproduced(golden, name, training):
    """From the original's own checkpoint, loaded strictly: ``embedding.weight`` and nothing else."""
    args, weights, given = golden(f"vector_quantizer_{name}")
    assert list(weights) == ["embedding.weight"]
    quantizer = VectorQuantizer(args["n_e"], args["e_dim"], **WEIGHTS[name]).train(training)
    quantizer.load_state_dict(weights, strict=True)
    z = given["z"].requires_grad_()

    quantized, indices, loss, terms = quantizer(z)
    (loss + (quantized * given["grad_quantized"]).sum()).backward()

    assert torch.equal(indices, given["indices"])
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(quantized, given["quantized"], **close)  # the original rounds by z + (q - z)
    torch.testing.assert_close(loss, given["loss"], **close)
    torch.testing.assert_close(z.grad, given["grad_z"], **close)
    torch.testing.assert_close(quantizer.codebook.grad, given["grad_embedding"], **close)
    torch.testing.assert_close(terms["codebook"] * 1.25, given["loss"], **close)
    assert torch.equal(quantizer.codebook, weights["embedding.weight"])  # a loaded codebook does not start again


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (3, 7, 2), (60, 20, 5)])
@pytest.mark.parametrize("weights", [(0.25, 1.0), (1.0, 0.25), (0.0, 2.0), (3.0, 0.0)])
def test_loss_and_gradients_equal_the_slow_version(reference, n, k, d, weights):
    """Defect 1: in float64, with both weights free, each weight scales the gradient of its own side and no other."""
    commitment_weight, codebook_weight = weights
    quantizer = VectorQuantizer(k, d, commitment_weight=commitment_weight, codebook_weight=codebook_weight).double()
    quantizer.set_codebook_(torch.randn(k, d))
    z = torch.randn(n, d, dtype=torch.float64, requires_grad=True)

    out = quantizer(z)
    out.loss.backward()

    indices, loss, grad_z, grad_codebook = reference.losses_and_gradients(
        z.detach().numpy(),
        quantizer.codebook.detach().numpy(),
        commitment_weight=commitment_weight,
        codebook_weight=codebook_weight,
    )
    assert out.indices.tolist() == indices.tolist()
    np.testing.assert_allclose(out.loss.item(), loss, rtol=1e-12)
    np.testing.assert_allclose(z.grad, grad_z, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(quantizer.codebook.grad, grad_codebook, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("weight", [0.25, 2.0])
def test_moving_averages_train_the_encoder_by_the_commitment_term_alone(reference, weight):
    quantizer = EMAVectorQuantizer(7, 3, commitment_weight=weight).double()
    quantizer.set_codebook_(torch.randn(7, 3))
    z = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)

    out = quantizer(z)
    out.loss.backward()

    indices, loss, grad_z, _ = reference.losses_and_gradients(
        z.detach().numpy(), quantizer.codebook.numpy(), commitment_weight=weight, codebook_weight=0
    )
    assert out.indices.tolist() == indices.tolist()
    np.testing.assert_allclose(out.loss.item(), loss, rtol=1e-12)
    np.testing.assert_allclose(z.grad, grad_z, rtol=1e-12)
    assert not list(quantizer.parameters())


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_default_is_the_papers_loss(golden, name):
    """Defect 1: of the two files only the paper's is reproduced without settings."""
    args, weights, given = golden(f"vector_quantizer_{name}")
    quantizer = VectorQuantizer(args["n_e"], args["e_dim"])
    quantizer.load_state_dict(weights)
    z = given["z"].requires_grad_()
    out = quantizer(z)
    (out.loss + (out.quantized * given["grad_quantized"]).sum()).backward()
    same = torch.allclose(quantizer.codebook.grad, given["grad_embedding"], rtol=1e-5, atol=1e-8)
    assert same == (name == "paper")
