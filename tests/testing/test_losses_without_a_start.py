"""Losses that are on from step 0: right ones raise no alarm, and what is wrong with others is seen."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vq_components.testing import CheckError, LossAdapter, LossTraits, check_loss


class Immediate(nn.Module):
    """Knows no steps, with parts to be replaced."""

    adaptive = False

    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(nn.Conv2d(3, 8, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 3))

    def pull(self, fake):
        return -fake.mean()

    def pixel(self, x, y):
        return (x - y).abs().mean()

    def generator(self, x, y, quantizer_loss, last_layer):
        self.critic.requires_grad_(False)
        pixel, pull = self.pixel(x, y), self.pull(self.critic(y))
        weight = 0.1
        if self.adaptive:
            norms = [torch.autograd.grad(part, last_layer, retain_graph=True)[0].norm() for part in (pixel, pull)]
            weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
        self.critic.requires_grad_(True)
        return pixel + weight * pull + quantizer_loss

    def discriminator(self, x, y):
        real, fake = self.critic(x), self.critic(y.detach())
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator(loss, scene, step):
    if step < 0:
        raise IndexError("a table of learning rates has no such step")
    return loss.generator(scene.images, scene.reconstructions, scene.quantizer_loss, scene.last_layer), {}


def discriminator(loss, scene, step):
    if step < 0:
        raise IndexError("a table of learning rates has no such step")
    return loss.discriminator(scene.images, scene.reconstructions), {}


ADAPTER = LossAdapter(generator=generator, discriminator=discriminator, network=lambda loss: loss.critic)
DECLARED = {
    "disc_loss": "hinge",
    "pixel": 1.0,
    "perceptual": 0.0,
    "factor": 1.0,
    "codebook": 1.0,
}
TRAITS = {
    "undeclared": (LossTraits(), False),
    "undeclared and adaptive": (LossTraits(), True),
    "declared": (LossTraits(**DECLARED, adversarial=0.1, adaptive=False), False),
    "declared and adaptive": (LossTraits(**DECLARED, adversarial=1.0, delta=1e-4), True),
}
BROKEN = {
    "generator pushed away": ("check_generator_fools", {"pull": lambda self, fake: fake.mean()}),
    "generator not pulled": ("check_generator_fools", {"pull": lambda self, fake: 0.0 * fake.mean()}),
    "minus a reconstruction": ("check_reconstruction_pulls", {"pixel": lambda self, x, y: -(x - y).abs().mean()}),
}


def built(adaptive=False, **methods):
    torch.manual_seed(0)
    return type("Immediate", (Immediate,), {**methods, "adaptive": adaptive})()


@pytest.mark.parametrize("what", TRAITS)
def test_no_step_before_the_first_is_asked(what):
    traits, adaptive = TRAITS[what]
    report = check_loss(built(adaptive), adapter=ADAPTER, traits=traits)
    asked = {
        "check_generator_fools",
        "check_reconstruction_pulls",
        "check_generator_start",
        "check_discriminator_start",
    }
    assert asked <= set(report.passed)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("what", BROKEN)
def test_a_wrong_sign_is_seen(what, adaptive):
    check, methods = BROKEN[what]
    with pytest.raises(CheckError) as error:
        check_loss(built(adaptive, **methods), adapter=ADAPTER, traits=LossTraits())
    assert check in {failure.check for failure in error.value.failures}


def test_a_start_that_is_not_declared_is_seen():
    def late(loss, scene, step):
        loss, terms = discriminator(loss, scene, step)
        return float(step >= 1) * loss, terms

    adapter = LossAdapter(generator=generator, discriminator=late, network=lambda loss: loss.critic)
    with pytest.raises(CheckError) as error:
        check_loss(built(), adapter=adapter, traits=LossTraits())
    assert "check_discriminator_start" in {failure.check for failure in error.value.failures}


class Joined(Immediate):
    """Images and reconstructions in one batch, which batch normalization sees as a whole."""

    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(
            nn.Conv2d(3, 8, 4, 2), nn.BatchNorm2d(8, track_running_stats=False), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 3)
        )

    def discriminator(self, x, y):
        real, fake = self.critic(torch.cat([x, y.detach()])).chunk(2)
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def test_batch_normalization_over_both_raises_no_alarm():
    torch.manual_seed(0)
    report = check_loss(Joined(), adapter=ADAPTER, traits=LossTraits(stochastic=True))
    assert "check_discriminator_tells_apart" in report.passed


def test_a_discriminator_that_sees_no_difference_is_told():
    def blind(self, x, y):
        logits = self.critic(torch.cat([x, y.detach()]))
        return F.relu(1 - logits).mean()

    torch.manual_seed(0)
    with pytest.raises(CheckError) as error:
        check_loss(type("Blind", (Joined,), {"discriminator": blind})(), adapter=ADAPTER, traits=LossTraits())
    assert "check_discriminator_tells_apart" in {failure.check for failure in error.value.failures}
