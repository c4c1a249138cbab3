"""Losses that are correct, each by a choice of its own, pass every check; the same choices hide no wrong sign."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vq_components.testing import CheckError, LossAdapter, LossTraits, check_loss


def patches(norm=lambda layer: layer):
    return nn.Sequential(norm(nn.Conv2d(3, 8, 4, 2)), nn.LeakyReLU(0.2), norm(nn.Conv2d(8, 1, 3)))


class Loss(nn.Module):
    """A hinge loss without an adaptive weight, with parts to be replaced."""

    sign, start = 1.0, 9

    def __init__(self):
        super().__init__()
        self.critic = self.network()

    def network(self):
        return patches()

    def joined(self):
        return self.critic

    def pull(self, fake):
        return -fake.mean()

    def push(self, real, fake):
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())

    def more(self, x, y):
        return 0.0

    def generator(self, x, y, quantizer_loss, step):
        loss = (x - y).abs().mean() + quantizer_loss
        if step < self.start:
            return loss
        self.critic.requires_grad_(False)
        loss = loss + 0.1 * self.sign * self.pull(self.critic(y)) + self.more(x, y)
        self.critic.requires_grad_(True)
        return loss

    def discriminator(self, x, y, step):
        if step < self.start:
            return x.new_zeros(())
        return self.push(self.critic(x), self.critic(y.detach()))


class OneLogit(Loss):
    """Of all images nearly the same one, which a softplus flattens once it is large."""

    def network(self):
        return nn.Sequential(
            nn.Conv2d(3, 16, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(16, 32, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 1),
        )

    def pull(self, fake):
        return F.softplus(-fake).mean()

    def push(self, real, fake):
        return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


class Scales(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([patches(), patches()])

    def forward(self, x):
        return [self.parts[0](x), self.parts[1](F.avg_pool2d(x, 2))]


class Joined(nn.Module):
    def __init__(self, scales):
        super().__init__()
        self.scales = scales

    def forward(self, x):
        return torch.cat([logits.flatten(1) for logits in self.scales(x)], dim=1)


class ManyScales(Loss):
    """A list of logits, which the adapter joins in a module that the loss does not know."""

    start = 0

    def network(self):
        return Scales()

    def joined(self):
        return Joined(self.critic)

    def pull(self, fake):
        return -sum(logits.mean() for logits in fake) / len(fake)

    def push(self, real, fake):
        return sum(super(ManyScales, self).push(*pair) for pair in zip(real, fake, strict=True)) / len(real)


class MatchedFeatures(Loss):
    """Much stronger than the adversarial part, and from the same step on."""

    def more(self, x, y):
        total = 0.0
        for layer in list(self.critic)[:-1]:
            x, y = layer(x), layer(y)
            total = total + (x.detach() - y).abs().mean()
        return total


class Iterating(Loss):
    """The older spectral normalization, which iterates in each training forward."""

    def network(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return patches(nn.utils.spectral_norm)


class Parametrized(Loss):
    start = 0

    def network(self):
        return patches(nn.utils.parametrizations.spectral_norm)


ADAPTER = LossAdapter(
    generator=lambda loss, s, step: (loss.generator(s.images, s.reconstructions, s.quantizer_loss, step), {}),
    discriminator=lambda loss, s, step: (loss.discriminator(s.images, s.reconstructions, step), {}),
    network=lambda loss: loss.joined(),
)
RIGHT = [OneLogit, ManyScales, MatchedFeatures, Iterating, Parametrized]


def checked(kind, seed=0, **parts):
    torch.manual_seed(seed)
    traits = LossTraits(adaptive=False, gen_start=kind.start, disc_start=kind.start)
    return check_loss(type(kind.__name__, (kind,), parts)(), adapter=ADAPTER, traits=traits)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_right_raises_no_alarm(kind, seed):
    assert {"check_generator_fools", "check_generator_start", "check_repeatable"} <= set(checked(kind, seed).passed)


@pytest.mark.parametrize("kind", RIGHT)
def test_a_wrong_sign_is_seen(kind):
    with pytest.raises(CheckError) as error:
        checked(kind, sign=-1.0)
    assert "check_generator_fools" in {failure.check for failure in error.value.failures}


def test_a_pull_that_reaches_nothing_is_seen():
    def cut(self, fake):
        return -fake.detach().mean()

    with pytest.raises(CheckError, match="adds nothing to the gradient"):
        checked(MatchedFeatures, pull=cut)
