"""The package's losses, as the kit tests them."""

import dataclasses
import functools
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torchvision.models import squeezenet1_1

from vq_components import LPIPSLoss, NLayerDiscriminator, VQGANLoss, VQLPIPSWithDiscriminator, functional
from vq_components.testing import LossSubject, PatchGAN, own_loss, taming_loss
from vq_components.testing import LossTraits as Traits


class Distance(nn.Module):
    """A perceptual distance without weights to load: of frozen random features, at two scales."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 6, 3, padding=1).requires_grad_(False)

    def forward(self, images, reconstructions):
        x, y = (self.features(batch).tanh() for batch in (images, reconstructions))
        return (x - y).square().mean(dim=(1, 2, 3)) + (x.mean(dim=1) - y.mean(dim=1)).square().mean(dim=(1, 2))


PAIRS = {
    "hinge": (functional.hinge_discriminator_loss, functional.hinge_generator_loss),
    "vanilla": (functional.vanilla_discriminator_loss, functional.vanilla_generator_loss),
    "non_saturating": (functional.non_saturating_discriminator_loss, functional.non_saturating_generator_loss),
}
SETTINGS = {
    "disc_start": 10,
    "gen_start": 20,
    "gen_ramp": 4,
    "pixelloss_weight": 0.7,
    "perceptual_weight": 1.3,
    "disc_weight": 0.8,
    "disc_factor": 0.6,
    "codebook_weight": 0.9,
}


def network(channels=3, **settings):
    return NLayerDiscriminator(channels, ndf=8, n_layers=2, **settings)


def random_lpips():
    """LPIPS on a small network with random weights: nothing is downloaded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "squeezenet1_1.pth"
        state = squeezenet1_1(weights=None).state_dict()
        torch.save(
            {name: value if "weight" in name else torch.randn(len(value)) for name, value in state.items()}, path
        )
        return LPIPSLoss("squeeze", weights=path)


def subjects():
    torch.manual_seed(0)
    built = {
        kind: LossSubject(VQGANLoss(network(), Distance(), disc_loss=kind, **SETTINGS), name=kind) for kind in PAIRS
    }
    plain = VQGANLoss(network(use_actnorm=True), None, disc_start=5, perceptual_weight=0.0, delta=1e-4)
    # Its constructor has to hand all of these on, so they are declared here and not read from it.
    weights = {"disc_start": 3, "disc_factor": 0.7, "codebook_weight": 0.6, "pixelloss_weight": 1.5,
               "perceptual_weight": 0.4, "disc_weight": 0.5, "gen_start": 6, "gen_ramp": 3, "delta": 1e-3,
               "disc_loss": "vanilla"}  # fmt: skip
    original = VQLPIPSWithDiscriminator(
        **weights, perceptual=Distance(), disc_num_layers=2, disc_ndf=8, disc_conditional=True, disc_in_channels=5,
        use_actnorm=True,
    )  # fmt: skip
    traits = Traits(cond_channels=2, disc_start=3, gen_start=6, gen_ramp=3, disc_loss="vanilla", pixel=1.5,
                    perceptual=0.4, adversarial=0.5, factor=0.7, codebook=0.6, delta=1e-3, strict=True,
                    patch_gan=PatchGAN(5, 8, 2, actnorm=True))  # fmt: skip
    called = VQLPIPSWithDiscriminator(3, perceptual=Distance(), disc_num_layers=1, disc_ndf=8)
    lpips = VQGANLoss(network(), random_lpips(), disc_start=0)
    built["lpips"] = LossSubject(lpips, name="lpips")
    built["pixels"] = LossSubject(plain, name="pixels")
    built["conditional"] = LossSubject(original, name="conditional", traits=traits)
    built["original-call"] = LossSubject(called, name="original-call", adapter=original_call(called))
    declare(built["hinge"], adaptive_weight=functional.adaptive_weight, build_discriminator=NLayerDiscriminator)
    for kind in PAIRS:
        declare(built[kind], adversarial_losses=PAIRS[kind])
    for name in ("hinge", "lpips"):
        declare(built[name], patch_gan=PatchGAN(3, 8, 2))
    declare(built["vanilla"], build=partial(VQGANLoss, network(), perceptual=Distance()))
    declare(built["conditional"], build=original_constructor())
    declare(built["lpips"], build_perceptual=LPIPSLoss)
    declare(built["pixels"], patch_gan=PatchGAN(3, 8, 2, actnorm=True))
    return list(built.values())


def original_constructor():
    """The original's arguments, without a perceptual network to load."""

    @functools.wraps(VQLPIPSWithDiscriminator)
    def build(*args, **settings):
        return VQLPIPSWithDiscriminator(*args, **{"perceptual": Distance(), **settings})

    return build


def declare(subject, **traits):
    subject.traits = dataclasses.replace(subject.traits, **traits)


def original_call(loss):
    traits = dataclasses.replace(own_loss.traits(loss), strict=False, patch_gan=PatchGAN(3, 8, 1))
    return dataclasses.replace(taming_loss, perceptual=own_loss.perceptual, traits=lambda _: traits)
