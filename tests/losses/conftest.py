"""What the tests of the losses share."""

import pytest
import torch
from torch import nn
from torchvision.models import squeezenet1_1

from vq_components.losses import LPIPSLoss, VQGANLoss
from vq_components.networks import NLayerDiscriminator


class Perceptual(nn.Module):
    """A small distance in the place of LPIPS, with trainable parameters; one number per image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, images, reconstructions):
        return (self.conv(images) - self.conv(reconstructions)).square().mean(dim=(1, 2, 3))


class Player:
    """A decoder of two layers, and images with latents for it."""

    def __init__(self, batch=2, size=16, dtype=torch.float32):
        self.images = torch.rand(batch, 3, size, size, dtype=dtype) * 2 - 1
        self.latents = torch.randn(batch, 4, size, size, dtype=dtype, requires_grad=True)
        self.decoder = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 3, 3, padding=1)).to(dtype)
        self.last_layer = self.decoder[-1].weight
        self.quantizer_loss = torch.tensor(0.25, dtype=dtype, requires_grad=True)

    def decode(self):
        return self.decoder(self.latents)

    def generator_loss(self, objective, *, step=0, **changes):
        given = {"quantizer_loss": self.quantizer_loss, "last_layer": self.last_layer, "step": step} | changes
        images, reconstructions = given.pop("images", self.images), given.pop("reconstructions", None)
        return objective.generator_loss(images, self.decode() if reconstructions is None else reconstructions, **given)

    def gradients(self):
        """Those of all that the generator's loss trains, as one list; they are zeroed."""
        tensors = [*self.decoder.parameters(), self.latents, self.quantizer_loss]
        gradients = [tensor.grad for tensor in tensors]
        for tensor in tensors:
            tensor.grad = None
        return gradients


@pytest.fixture
def player():
    return Player()


@pytest.fixture
def make_player():
    return Player


@pytest.fixture
def make_objective():
    """``make_objective(**settings)``: a :class:`VQGANLoss` with both networks, for images of 16 x 16 or more."""

    def make(*, discriminator=None, perceptual=None, **settings):
        settings = {"disc_start": 0} | settings
        discriminator = NLayerDiscriminator(ndf=8, n_layers=1) if discriminator is None else discriminator
        return VQGANLoss(discriminator, Perceptual() if perceptual is None else perceptual, **settings)

    return make


@pytest.fixture(scope="session")
def squeeze_weights(tmp_path_factory):
    """A whole checkpoint of torchvision's smallest trunk, with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_1.pth"
    torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.fixture
def squeeze(squeeze_weights):
    return LPIPSLoss("squeeze", weights=squeeze_weights)
