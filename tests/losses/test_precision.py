"""Mixed precision, scaled losses, and derivatives that do not exist."""

import copy

import pytest
import torch
from torch import nn

from vq_components.losses import VQGANLoss
from vq_components.networks import NLayerDiscriminator


def all_in_one(gradients):
    return torch.cat([gradient.flatten().float() for gradient in gradients])


@pytest.mark.parametrize("scale", [1 / 4, 2.0**16])
def test_gradients_follow_a_scaled_loss(player, make_objective, scale):
    """By a power of two exactly: as GradScaler, or the mean over micro-batches, scales it."""
    objective = make_objective()
    player.generator_loss(objective).loss.backward()
    expected = player.gradients()
    (player.generator_loss(objective).loss * scale).backward()
    for found, gradient in zip(player.gradients(), expected, strict=True):
        torch.testing.assert_close(found, gradient * scale, rtol=1e-6, atol=0.0)


def test_grad_scaler_steps_as_without_it(player, make_objective):
    objective, weights = make_objective(), []
    start = copy.deepcopy(player.decoder.state_dict())
    for enabled in (False, True):
        player.decoder.load_state_dict(start)
        optimizer = torch.optim.SGD(player.decoder.parameters(), lr=1.0)
        scaler = torch.amp.GradScaler("cpu", enabled=enabled)
        scaler.scale(player.generator_loss(objective).loss).backward()
        scaler.step(optimizer)
        scaler.update()
        player.gradients()
        weights.append(player.last_layer.clone())
    assert not torch.equal(weights[0], start["2.weight"])
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", ["autocast", "cast"])
def test_half_precision_gives_nearly_the_same(make_player, make_objective, dtype, way):
    """Without scaled internal gradients, those of a float16 graph would round to zero in these images of 96 x 96."""
    player, objective = make_player(batch=4, size=96), make_objective()
    _, expected = player.generator_loss(objective)
    if way == "cast":
        player.decoder.to(dtype)
        objective.to(dtype)
        player.images, player.latents = player.images.to(dtype), player.latents.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype, enabled=way == "autocast"):
        reconstructions = player.decode()
        loss, terms = player.generator_loss(objective, reconstructions=reconstructions)
    assert reconstructions.dtype == dtype
    assert loss.dtype == torch.float32
    tolerance = {torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name], rtol=tolerance, atol=2e-3)
    (2**16 * loss).backward()
    assert player.last_layer.grad.dtype == (torch.float32 if way == "autocast" else dtype)
    assert all_in_one(player.gradients()).isfinite().all()


class Pixels(nn.Module):
    """Logits that are the pixels, times a factor: a discriminator with a gradient of a known size."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, images):
        return images.float() * self.factor


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("level", [1e-2, 1.0, 100.0])
def test_float16_graph_neither_underflows_nor_overflows(factor, level):
    """All pixels pull the last layer the same way, which is where their sum is largest.

    The gradient of the pixel term is ``mean(hidden)`` per weight, that of the logits ``factor`` times as much.
    """
    layer = nn.Conv2d(2, 3, 1, bias=False).half()
    hidden = torch.full((4, 2, 256, 256), level, dtype=torch.float16)
    reconstructions = layer(hidden)
    objective = VQGANLoss(Pixels(factor), None, perceptual_weight=0.0, disc_start=0, delta=0.0)
    images = torch.full_like(reconstructions, -100.0)
    loss, terms = objective.generator_loss(
        images, reconstructions, quantizer_loss=torch.tensor(0.0), last_layer=layer.weight, step=0
    )
    assert terms["adaptive_weight"].item() == pytest.approx(1 / factor, rel=0.01)
    assert loss.isfinite()


def test_float16_discriminator_does_not_underflow(make_player):
    """Logits of many patches, each with a small share in the mean, through weights of 0.02."""
    player = make_player(batch=2, size=256)
    objective = VQGANLoss(NLayerDiscriminator(ndf=4, n_layers=1), None, perceptual_weight=0.0, disc_start=0)
    _, expected = player.generator_loss(objective)
    with torch.autocast("cpu", torch.float16):
        _, terms = player.generator_loss(objective)
    torch.testing.assert_close(terms["adaptive_weight"], expected["adaptive_weight"], rtol=0.03, atol=0.0)


@pytest.mark.parametrize("case", ["equal images", "blind discriminator", "both"])
def test_zero_gradients_give_finite_numbers(player, make_objective, case):
    discriminator = NLayerDiscriminator(ndf=8, n_layers=1)
    if case != "equal images":
        nn.init.zeros_(discriminator.main[-1].weight)
    objective = make_objective(discriminator=discriminator)
    reconstructions = player.decode()
    images = player.images if case == "blind discriminator" else reconstructions.detach().clone()
    loss, terms = player.generator_loss(objective, reconstructions=reconstructions, images=images)
    expected = {"equal images": 0.0, "blind discriminator": 1e4, "both": 0.0}[case]
    assert terms["adaptive_weight"] == expected
    loss.backward()
    assert all_in_one(player.gradients()).isfinite().all()


def test_what_is_not_finite_shows_in_loss_and_gradient(player, make_objective):
    """So that the user or GradScaler sees it; the weight itself is 0."""
    objective = make_objective()
    reconstructions = player.decode()
    with torch.no_grad():
        reconstructions[0, 0, 0, 0] = float("nan")
    loss, terms = player.generator_loss(objective, reconstructions=reconstructions)
    assert terms["adaptive_weight"] == 0
    assert loss.isnan()
    loss.backward()
    assert player.last_layer.grad.isnan().any()


def test_an_empty_batch_gives_a_finite_loss(make_player, make_objective):
    player = make_player(batch=0)
    objective = make_objective(discriminator=nn.Conv2d(3, 1, 3), disc_start=0)
    loss, terms = player.generator_loss(objective)
    loss.backward()
    assert loss == player.quantizer_loss
    assert terms["adaptive_weight"] == 0
    assert objective.discriminator_loss(player.images, player.decode(), step=0).loss.isfinite()


@pytest.mark.parametrize("disc_start", [0, 9])
def test_a_second_derivative_raises(player, make_objective, disc_start):
    """Always alike, also before the adversarial term is there."""
    loss = player.generator_loss(make_objective(disc_start=disc_start)).loss
    with pytest.raises(RuntimeError, match="differentiated once") as error:
        torch.autograd.grad(loss, player.latents, create_graph=True)
    assert str(error.value) == (
        "The generator's loss can be differentiated once only: its gradient is computed in the forward pass. "
        "Call backward() without create_graph=True."
    )


def test_reconstructions_may_be_a_leaf(player, make_objective):
    leaf = player.decode().detach().requires_grad_()
    player.generator_loss(make_objective(), reconstructions=leaf, last_layer=leaf).loss.backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad.abs().sum() > 0
