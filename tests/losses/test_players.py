"""Neither player's pass touches what belongs to the other."""

import copy

import pytest
import torch
from torch import nn

from vq_components.networks import NLayerDiscriminator

DISCRIMINATORS = {
    "batch norm": lambda: NLayerDiscriminator(ndf=8, n_layers=1),
    "actnorm": lambda: NLayerDiscriminator(ndf=8, n_layers=1, use_actnorm=True),
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), nn.SiLU(), nn.Dropout(), nn.Conv2d(8, 1, 3)
    ),
}
parametrize_discriminators = pytest.mark.parametrize("make", DISCRIMINATORS.values(), ids=DISCRIMINATORS)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@parametrize_discriminators
@pytest.mark.parametrize("autograd", [True, False])
def test_generator_pass_leaves_the_discriminator_alone(player, make_objective, make, autograd):
    discriminator = make()
    frozen = next(discriminator.parameters()).requires_grad_(False)
    objective = make_objective(discriminator=discriminator)
    before, flags = state(objective), [parameter.requires_grad for parameter in objective.parameters()]
    with torch.set_grad_enabled(autograd):
        loss, terms = player.generator_loss(objective)
    if autograd:
        loss.backward()
    assert terms["generator"] != 0
    assert_equal(state(objective), before)
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert [parameter.requires_grad for parameter in objective.parameters()] == flags
    assert not frozen.requires_grad
    assert all(module.training for module in discriminator.modules())


@parametrize_discriminators
def test_generator_pass_sees_the_discriminator_as_a_call_would(player, make_objective, make):
    """In its mode, and with the statistics of the batch where it is training."""
    objective = make_objective(discriminator=make())
    reconstructions = player.decode()
    for training in (True, False):
        objective.train(training)
        torch.manual_seed(1)
        expected = copy.deepcopy(objective.discriminator)(reconstructions).mean()
        torch.manual_seed(1)
        found = player.generator_loss(objective, reconstructions=reconstructions).terms["logits_fake"]
        torch.testing.assert_close(found, expected.detach())


def test_actnorm_starts_in_the_discriminator_pass(player, make_objective):
    objective = make_objective(discriminator=DISCRIMINATORS["actnorm"]())
    norm = objective.discriminator.main[3]
    player.generator_loss(objective)
    assert norm.initialized == 0
    objective.discriminator_loss(player.images, player.decode(), step=0)
    assert norm.initialized == 1


def test_no_gradient_reaches_a_perceptual_module_that_could_train(player, make_objective):
    objective = make_objective()
    player.generator_loss(objective).loss.backward()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in objective.perceptual.parameters())


def test_generator_pass_builds_no_graph_that_is_not_needed(player, make_objective):
    """Neither to the discriminator's parameters nor to the images."""
    objective, flags = make_objective(), []
    objective.discriminator.register_forward_hook(
        lambda module, *_: flags.extend(parameter.requires_grad for parameter in module.parameters())
    )
    objective.perceptual.register_forward_hook(lambda module, inputs, output: flags.append(inputs[0].requires_grad))
    player.generator_loss(objective, images=player.images.requires_grad_())
    assert flags
    assert not any(flags)


def test_images_get_no_gradient(player, make_objective):
    objective = make_objective()
    player.images.requires_grad_()
    player.generator_loss(objective).loss.backward()
    objective.discriminator_loss(player.images, player.decode(), step=0).loss.backward()
    assert player.images.grad is None


def test_discriminator_pass_leaves_the_generator_alone(player, make_objective):
    objective = make_objective()
    loss, terms = objective.discriminator_loss(player.images, player.decode(), step=0)
    loss.backward()
    assert all(gradient is None for gradient in player.gradients())
    assert all(parameter.grad is None for parameter in objective.perceptual.parameters())
    assert all(parameter.grad is not None for parameter in objective.discriminator.parameters())
    assert list(terms) == ["discriminator", "logits_real", "logits_fake"]
    assert {(term.shape, term.dtype, term.requires_grad) for term in terms.values()} == {((), torch.float32, False)}


@pytest.mark.parametrize("disc_loss", ["hinge", "vanilla", "non_saturating"])
def test_discriminator_loss_sees_real_images_first(player, make_objective, disc_loss):
    """The order decides the running statistics of batch normalization."""
    objective = make_objective(disc_loss=disc_loss, disc_factor=0.5)
    reference = copy.deepcopy(objective.discriminator)
    reconstructions = player.decode()
    loss, terms = objective.discriminator_loss(player.images, reconstructions, step=0)
    real, fake = reference(player.images), reference(reconstructions)
    if disc_loss == "hinge":
        expected = (1 - real).relu().mean() / 2 + (1 + fake).relu().mean() / 2
    else:
        targets = torch.ones_like(real), torch.zeros_like(fake)
        expected = sum(map(nn.functional.binary_cross_entropy_with_logits, (real, fake), targets)) / 2
    torch.testing.assert_close(terms["discriminator"], expected.detach())
    torch.testing.assert_close(loss.detach(), 0.5 * expected.detach())
    torch.testing.assert_close(terms["logits_real"], real.mean().detach())
    torch.testing.assert_close(terms["logits_fake"], fake.mean().detach())
    assert_equal(state(objective.discriminator), state(reference))


def test_discriminator_pass_teaches_real_from_fake(player, make_objective):
    objective = make_objective()
    reconstructions = player.decode().detach()
    optimizer = torch.optim.Adam(objective.discriminator.parameters(), lr=1e-2)
    losses = []
    for step in range(12):
        optimizer.zero_grad()
        loss, terms = objective.discriminator_loss(player.images, reconstructions, step=step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert terms["logits_real"] > terms["logits_fake"]


@pytest.mark.parametrize("settings", [{"disc_start": 1}, {"disc_factor": 0.0}])
def test_discriminator_is_not_called_before_its_start(player, make_objective, settings):
    class Never(nn.Conv2d):
        def forward(self, images):
            raise AssertionError

    objective = make_objective(discriminator=Never(3, 1, 1), **settings)
    loss, terms = objective.discriminator_loss(player.images, player.decode(), step=0)
    assert loss.shape == ()
    assert loss.is_leaf
    assert loss == 0
    loss.backward()
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert terms == {"discriminator": 0, "logits_real": 0, "logits_fake": 0}


def test_both_passes_share_one_forward_of_the_decoder(player, make_objective):
    """In either order, each with its own backward."""
    objective = make_objective()
    reconstructions = player.decode()
    for first in ("generator", "discriminator"):
        generator = player.generator_loss(objective, reconstructions=reconstructions).loss
        discriminator = objective.discriminator_loss(player.images, reconstructions, step=0).loss
        for loss in (generator, discriminator) if first == "generator" else (discriminator, generator):
            loss.backward(retain_graph=True)
