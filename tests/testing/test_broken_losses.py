"""Checks seen red: a loss that is called as the original's is, and what is wrong with others."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vq_components import NLayerDiscriminator, adaptive_weight, testing
from vq_components.testing import CheckError, CheckFailure, PatchGAN, taming_loss


def hinge_d_loss(real, fake):
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


class Distance(nn.Module):
    """A perceptual distance with weights that are fixed."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 6, 3, padding=1, bias=False).requires_grad_(False)
        self.drop = nn.Dropout(0.0)

    def unit(self, features):
        return features / (features.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()

    def forward(self, x, y):
        x, y = (self.unit(self.features(batch)) for batch in (x + 1, y + 1))  # black images have features of zero
        return self.drop((x - y).square()).mean(dim=(1, 2, 3), keepdim=True)


class Plain(nn.Module):
    """The original's sum, written shortly, right in everything that is checked."""

    def __init__(self, distance=None):
        super().__init__()
        self.pixel_weight, self.perceptual_weight, self.codebook_weight = 1.0, 1.3, 0.9
        self.discriminator_weight, self.disc_factor, self.discriminator_iter_start = 0.8, 0.6, 5
        self.disc_loss = hinge_d_loss
        self.discriminator = nn.Sequential(nn.Conv2d(3, 8, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 3))
        self.perceptual_loss = Distance() if distance is None else distance

    def pixel(self, x, y):
        return self.pixel_weight * (x - y).abs().mean()

    def forward(self, codebook_loss, x, y, optimizer_idx, global_step, *, last_layer, cond, split):
        factor = self.disc_factor if global_step >= self.discriminator_iter_start else 0.0
        if optimizer_idx == 1:
            loss = self.disc_loss(self.discriminator(x), self.discriminator(y.detach()))
            return factor * loss, {f"{split}/disc_loss": loss.detach()}
        reconstruction = self.pixel(x, y) + self.perceptual_weight * self.perceptual_loss(x, y).mean()
        loss = reconstruction + self.codebook_weight * codebook_loss
        if factor > 0:
            self.discriminator.requires_grad_(False)
            g_loss = -self.discriminator(y).mean()
            self.discriminator.requires_grad_(True)
            weight = adaptive_weight(reconstruction, g_loss, last_layer, delta=1e-4)
            loss = loss + factor * self.discriminator_weight * weight * g_loss
        return loss, {f"{split}/total_loss": loss.detach()}


class Idle(Plain):
    """As the original: the pixel weight is stored and never used."""

    def pixel(self, x, y):
        return (x - y).abs().mean()


def with_distance(**methods):
    return Plain(type("Broken", (Distance,), methods)())


def waking(loss):
    loss.perceptual_loss.drop.p = 0.5
    loss.perceptual_loss.eval()  # until its owner's train()
    return loss


class Restarting(nn.Module):
    """Shifts features by the batch's mean whenever it is called, as a parameter that an optimizer should own."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3, 1, 1))

    def forward(self, x):
        with torch.no_grad():
            self.shift.copy_(x.detach().mean(dim=(0, 2, 3)).view(3, 1, 1))
        return x - self.shift


def restarting():
    loss = Plain()
    loss.discriminator.insert(0, Restarting())
    return loss


class Logging(Plain):
    """Logs something else: ``change`` makes it from the log of a loss that is right."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, *args, split, **options):
        loss, log = super().forward(*args, split=split, **options)
        return loss, self.change(log)


CASES = {
    "check_log_splits": (
        lambda: Logging(lambda log: {f"train/{name.rpartition('/')[2]}": value for name, value in log.items()}),
        "split='val': train/total_loss instead of val/total_loss",
    ),
    "check_log_values": (
        lambda: Logging(lambda log: {name: 2 * value for name, value in log.items()}),
        "total_loss is",
    ),
    "check_loss_changes_nothing": (restarting, "evaluation: discriminator.0.shift"),
    "check_perceptual_is_a_function": (lambda: waking(Plain()), "training, compared with evaluation"),
    "check_repeatable": (lambda: waking(Plain()), "measured"),
    "check_eval_equals_train": (lambda: waking(Plain()), "in eval"),
    "check_perceptual_of_equal_images": (
        lambda: with_distance(unit=lambda self, f: f / f.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-9)),
        "not finite",
    ),
    "check_weights_have_effect": (Idle, "pixel_weight"),
}


def test_a_plain_loss_raises_no_alarm():
    torch.manual_seed(0)
    testing.check_loss(Plain())


def test_what_is_drawn_hides_nothing():
    torch.manual_seed(0)
    with pytest.raises(CheckError) as error:
        testing.check_loss(waking(Idle()))
    assert {failure.check for failure in error.value.failures} == {
        "check_perceptual_is_a_function",
        "check_repeatable",
        "check_eval_equals_train",
        "check_weights_have_effect",
    }


@pytest.mark.parametrize("name", CASES)
def test_each_check_finds_what_it_guards(name):
    build, measured = CASES[name]
    torch.manual_seed(0)
    with pytest.raises(CheckFailure, match=measured) as failure:
        getattr(testing, name)(build())
    assert failure.value.check == name


def test_statistics_of_the_batch_in_the_distance_are_seen():
    torch.manual_seed(0)
    loss = with_distance(unit=lambda self, f: Distance.unit(self, f - f.mean(dim=0)))
    with pytest.raises(CheckFailure, match="image by image"):
        testing.check_perceptual_is_a_function(loss)


@pytest.mark.parametrize(
    ("discriminator", "measured"),
    [
        (lambda logits_real, logits_fake: ((-logits_real).exp() + 1).log().mean() / 2, "instead of"),
        (lambda logits_real, logits_fake: F.softplus(torch.cat([-logits_real.flatten(), logits_fake.flatten()])).mean(),
         "usual logits, torch.float64"),
    ],
)  # fmt: skip
def test_another_adversarial_function_is_seen(discriminator, measured):
    torch.manual_seed(0)
    loss = Plain()
    pair = (discriminator, lambda logits_fake: -logits_fake.mean())
    traits = dataclasses.replace(taming_loss.traits(loss), disc_loss="vanilla", adversarial_losses=pair)
    with pytest.raises(CheckFailure, match=measured):
        testing.check_adversarial_functions(loss, traits=traits)


def test_another_network_than_declared_is_seen():
    torch.manual_seed(0)
    loss = Plain()
    loss.discriminator = NLayerDiscriminator(3, 4, 2)
    for declared in (PatchGAN(3, 4, 2, actnorm=True), PatchGAN(3, 4, 3), PatchGAN(3, 8, 2), PatchGAN(4, 4, 2)):
        traits = dataclasses.replace(taming_loss.traits(loss), patch_gan=declared)
        with pytest.raises(CheckFailure, match="not as declared"):
            testing.check_discriminator_network(loss, traits=traits)
