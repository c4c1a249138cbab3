"""Losses without an adaptive weight: right ones raise no alarm, and what is wrong with others is seen."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vq_components import testing
from vq_components.testing import CheckError, CheckFailure, LossTraits, taming_loss


def hinge_d_loss(real, fake):
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


class Unscaled(nn.Module):
    """Called as the original is, without an adaptive weight, with parts to be replaced."""

    def __init__(self):
        super().__init__()
        self.discriminator = nn.Sequential(nn.Conv2d(3, 8, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 3))

    def pixel(self, x, y):
        return (x - y).abs().mean()

    def hinge(self, real, fake):
        return hinge_d_loss(real, fake)

    def quantizer(self, codebook_loss):
        return 0.9 * codebook_loss

    def forward(self, codebook_loss, x, y, optimizer_idx, global_step, *, last_layer, cond, split):
        factor = 0.6 if global_step >= 5 else 0.0
        if optimizer_idx == 1:
            loss = self.hinge(self.discriminator(x), self.discriminator(y.detach()))
            return factor * loss, {}
        loss = self.pixel(x, y) + self.quantizer(codebook_loss)
        if factor > 0:
            self.discriminator.requires_grad_(False)
            loss = loss - factor * 0.8 * self.discriminator(y).mean()
            self.discriminator.requires_grad_(True)
        return loss, {}


def unscaled(**methods):
    return type("Broken", (Unscaled,), methods)()


ADAPTER = dataclasses.replace(taming_loss, log=None)
DECLARED = LossTraits(disc_start=5, gen_start=5, disc_loss="hinge", pixel=1.0, perceptual=0.0, adversarial=0.8,
                      factor=0.6, codebook=0.9, adaptive=False)  # fmt: skip
UNDECLARED = LossTraits(disc_start=5, gen_start=5)
UNSCALED = {
    "hinge without its bound": (
        "check_discriminator_values",
        {"hinge": lambda self, real, fake: 0.5 * ((1 - real).mean() + (1 + fake).mean())},
        dataclasses.replace(UNDECLARED, disc_loss="hinge"),
    ),
    "half": ("check_discriminator_values", {"hinge": lambda self, r, f: 2 * hinge_d_loss(r, f)}, DECLARED),
    "squares": ("check_generator_values", {"pixel": lambda self, x, y: (x - y).square().mean()}, DECLARED),
    "quantizer twice": ("check_generator_values", {"quantizer": lambda self, loss: 1.8 * loss}, DECLARED),
    "quantizer cut off": ("check_quantizer_loss_counts", {"quantizer": lambda self, v: v.detach()}, UNDECLARED),
    "sum over images": (
        "check_loss_of_repeated_images",
        {"pixel": lambda self, x, y: len(x) * (x - y).abs().mean()},
        UNDECLARED,
    ),
    "sum over logits": (
        "check_loss_of_repeated_images",
        {"hinge": lambda self, real, fake: len(real) * hinge_d_loss(real, fake)},
        UNDECLARED,
    ),
}


def test_a_loss_without_an_adaptive_weight_raises_no_alarm():
    torch.manual_seed(0)
    report = testing.check_loss(Unscaled(), adapter=ADAPTER, traits=DECLARED)
    assert {"check_generator_values", "check_generator_gradients"} <= set(report.passed)
    assert set(report.left_out) == {"check_weights_have_effect"}
    report = testing.check_loss(Unscaled(), adapter=ADAPTER, traits=UNDECLARED)
    assert "adaptive=False" in report.left_out["check_generator_values"]
    double = unscaled(hinge=lambda self, real, fake: 2 * hinge_d_loss(real, fake))
    testing.check_discriminator_values(
        double, adapter=ADAPTER, traits=dataclasses.replace(UNDECLARED, disc_loss="hinge")
    )


class Drawing(nn.Module):
    """A discriminator with a frozen part, spectral normalization, and random brightness."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 4, 2).requires_grad_(False)
        self.head = nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 1, 3))

    def forward(self, x):
        return self.head(F.leaky_relu(self.backbone(x + 0.3 * torch.randn(len(x), 1, 1, 1))))


def test_a_discriminator_that_draws_raises_no_alarm():
    torch.manual_seed(0)
    loss = Unscaled()
    loss.discriminator = Drawing()
    traits = dataclasses.replace(DECLARED, stochastic=True)
    report = testing.check_loss(loss, adapter=ADAPTER, traits=traits)
    assert "check_generator_leaves_discriminator" in report.passed
    assert "check_repeatable" not in report.passed


def test_a_frozen_part_of_the_discriminator_raises_no_alarm():
    torch.manual_seed(0)
    loss = Unscaled()
    loss.discriminator[0].requires_grad_(False)
    testing.check_loss(loss, adapter=ADAPTER, traits=DECLARED)


def test_terms_of_others_are_their_own():
    class Weighted(Unscaled):
        def forward(self, *args, **options):
            loss, _ = super().forward(*args, **options)
            return loss, {"loss": 2 * loss.item(), "discriminator": -1.0, "logits_real": torch.zeros(3)}

    torch.manual_seed(0)
    testing.check_loss(Weighted(), adapter=ADAPTER, traits=DECLARED)


@pytest.mark.parametrize("what", UNSCALED)
def test_a_loss_without_an_adaptive_weight_is_compared(what):
    torch.manual_seed(0)
    check, methods, traits = UNSCALED[what]
    with pytest.raises(CheckError) as error:
        testing.check_loss(unscaled(**methods), adapter=ADAPTER, traits=traits)
    assert check in {failure.check for failure in error.value.failures}


@pytest.mark.parametrize(
    ("adapter", "measured"),
    [
        (dataclasses.replace(ADAPTER, network=lambda module: module.critic), "network: raised AttributeError"),
        (dataclasses.replace(ADAPTER, network=lambda module: None), "gives NoneType, no module"),
        (dataclasses.replace(ADAPTER, generator=lambda m, scene, step: scene.quantizer_loss), "gives Tensor, not"),
        (dataclasses.replace(ADAPTER, discriminator=lambda m, scene, step: (scene.images, {})), r"loss is \(4, 3"),
        (dataclasses.replace(ADAPTER, discriminator=lambda m, s, step: (s.quantizer_loss, None)), "terms are None"),
    ],
)
def test_an_adapter_that_does_not_fit_is_told(adapter, measured):
    with pytest.raises(CheckFailure, match=measured):
        testing.check_loss_call(Unscaled(), adapter=adapter, traits=DECLARED)
