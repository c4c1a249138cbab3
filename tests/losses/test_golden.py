"""The original's own numbers: both passes, before ``disc_start`` and at it."""

import pytest
import torch
from torch import nn

from vq_components.losses import LPIPSLoss, VQLPIPSWithDiscriminator

EXACT = {"rtol": 1e-5, "atol": 1e-7}


def run(reference, step, perceptual=None):
    """Both passes of the original's call: what to compare with, losses, log and gradient."""
    args, weights, tensors = reference
    objective = VQLPIPSWithDiscriminator(**args, perceptual=perceptual, delta=1e-4)
    layer = nn.Conv2d(6, 3, 3, padding=1)
    for name, module in {"discriminator": objective.discriminator, "last_layer": layer}.items():
        prefix = f"{name}."
        module.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    reconstructions = layer(tensors["hidden"])
    given = tensors["codebook_loss"], tensors["inputs"], reconstructions
    loss, log = objective(*given, 0, step, last_layer=layer.weight)
    loss.backward()
    loss_d, log_d = objective(*given, 1, step, last_layer=layer.weight)
    loss_d.backward()
    prefix = f"step{step}."
    expected = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    found = {f"log.{key}": value for key, value in (log | log_d).items()}
    return expected, found | {
        "generator_loss": loss.detach(),
        "discriminator_loss": loss_d.detach(),
        "grad_last_layer": layer.weight.grad,
        "reconstructions": reconstructions.detach(),
    }


@pytest.mark.parametrize("disc_loss", ["hinge", "vanilla"])
@pytest.mark.parametrize("step", [0, 10])
def test_pixel_loss_is_the_originals(golden, disc_loss, step):
    expected, found = run(golden(f"loss_{disc_loss}_pixel"), step)
    assert found.keys() == expected.keys()
    if step == 0:  # the original computes the adversarial pass here too, times 0
        for name in ("d_weight", "g_loss", "logits_real", "logits_fake"):
            assert found.pop(f"log.train/{name}") == 0
    for name, value in found.items():
        # Machines add the products of a convolution in different orders. The rounding goes with the size of the terms,
        # hence of the largest entries, and shows most in entries where the terms cancel.
        atol = EXACT["atol"] + EXACT["rtol"] * expected[name].abs().max().item()
        torch.testing.assert_close(
            value, expected[name], rtol=0.0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture(scope="module")
def lpips(vgg16_weights):
    return LPIPSLoss(weights=vgg16_weights)


@pytest.mark.parametrize("disc_loss", ["hinge", "vanilla"])
@pytest.mark.parametrize("step", [0, 10])
def test_perceptual_loss_is_near_the_originals(golden, lpips, disc_loss, step):
    """Its perceptual term was computed with dropout on: for one input, its value differs by 0.6 % between the steps.

    So that term, and what follows from it, is compared in size, the rest exactly.
    """
    expected, found = run(golden(f"loss_{disc_loss}_lpips"), step, lpips)
    assert found.keys() == expected.keys()
    exact = {"log.train/quant_loss", "discriminator_loss", "log.train/disc_loss", "log.train/disc_factor"}
    if step > 0:
        exact |= {"log.train/g_loss", "log.train/logits_real", "log.train/logits_fake"}
        torch.testing.assert_close(found["log.train/d_weight"], expected["log.train/d_weight"], rtol=0.06, atol=0.0)
    for name in exact:
        torch.testing.assert_close(found[name], expected[name], **EXACT, msg=lambda text, name=name: f"{name}: {text}")
    for name in ("p_loss", "rec_loss", "nll_loss", "total_loss"):
        name = f"log.train/{name}"
        torch.testing.assert_close(found[name], expected[name], rtol=0.015, atol=0.0)

    for values in (expected, found):  # what is left without the perceptual term
        values["pixel"] = values["log.train/nll_loss"] - values["log.train/p_loss"]
        values["rest"] = values["generator_loss"] - values["log.train/nll_loss"]
        values["rest"] -= values["log.train/d_weight"] * values["log.train/disc_factor"] * values["log.train/g_loss"]
    for name in ("pixel", "rest"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
    gradients = [values["grad_last_layer"].flatten() for values in (found, expected)]
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98
