import copy

import pytest
import torch
from torch import nn

GENERATOR_LOSSES = {
    "hinge": lambda logits: -logits.mean(),
    "vanilla": lambda logits: -logits.mean(),
    "non_saturating": lambda logits: -logits.sigmoid().log().mean(),
}
TERMS = ["pixel", "perceptual", "reconstruction", "generator", "quantizer", "adaptive_weight", "logits_fake"]


def original(player, objective, factor=1.0):
    """The original's computation: one graph through everything, and two more backward passes for the weight."""
    discriminator = copy.deepcopy(objective.discriminator)
    reconstructions = player.decode()
    distance = objective.perceptual(player.images, reconstructions)
    difference = objective.pixelloss_weight * (player.images - reconstructions).abs()
    reconstruction = (difference + objective.perceptual_weight * distance[:, None, None, None]).mean()
    generator = GENERATOR_LOSSES[objective.disc_loss](discriminator(reconstructions))
    pull, push = (
        torch.autograd.grad(loss, player.last_layer, retain_graph=True)[0] for loss in (reconstruction, generator)
    )
    weight = (pull.norm() / (push.norm() + objective.delta)).clamp(0, 1e4).detach()
    loss = reconstruction + weight * objective.disc_weight * objective.disc_factor * factor * generator
    loss = loss + objective.codebook_weight * player.quantizer_loss.mean()
    loss.backward()
    return loss.detach(), weight, player.gradients()


@pytest.mark.parametrize("disc_loss", GENERATOR_LOSSES)
@pytest.mark.parametrize("training", [True, False])
def test_loss_and_gradients_are_those_of_the_original_computation(make_player, make_objective, disc_loss, training):
    player = make_player(dtype=torch.float64)
    weights = {"pixelloss_weight": 0.7, "perceptual_weight": 1.3, "disc_weight": 0.8, "codebook_weight": 0.9}
    objective = make_objective(disc_loss=disc_loss, disc_factor=0.6, **weights).double().train(training)
    loss, weight, gradients = original(player, objective)
    result = player.generator_loss(objective)
    result.loss.backward()
    torch.testing.assert_close(result.loss.detach(), loss, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(result.terms["adaptive_weight"].double(), weight, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(player.gradients(), gradients, rtol=1e-10, atol=1e-14)


def test_norms_pass_through_what_follows_the_last_layer(make_player, make_objective):
    player, objective = make_player(dtype=torch.float64), make_objective().double()
    player.decoder.append(nn.Tanh())
    loss, _, gradients = original(player, objective)
    result = player.generator_loss(objective)
    result.loss.backward()
    torch.testing.assert_close(result.loss.detach(), loss, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(player.gradients(), gradients, rtol=1e-10, atol=1e-14)


def test_terms_are_unweighted_detached_float32_scalars(make_player, make_objective):
    player = make_player(dtype=torch.float64)
    objective = make_objective(disc_weight=3.0, disc_factor=5.0, gen_ramp=7, codebook_weight=2.0).double()
    loss, terms = player.generator_loss(objective, step=2)
    assert list(terms) == TERMS
    assert {(term.shape, term.dtype, term.requires_grad) for term in terms.values()} == {((), torch.float32, False)}
    reconstructions = player.decode()
    logits = copy.deepcopy(objective.discriminator)(reconstructions)
    expected = {
        "pixel": (player.images - reconstructions).abs().mean(),
        "perceptual": objective.perceptual(player.images, reconstructions).mean(),
        "generator": -logits.mean(),
        "quantizer": player.quantizer_loss,
        "logits_fake": logits.mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value.detach().float())
    torch.testing.assert_close(terms["reconstruction"], terms["pixel"] + terms["perceptual"])
    share = terms["adaptive_weight"] * 3.0 * 5.0 * 3 / 7 * terms["generator"]
    torch.testing.assert_close(loss.detach().float(), terms["reconstruction"] + share + 2.0 * terms["quantizer"])


@pytest.mark.parametrize("disc_start", [0, 1])
@pytest.mark.parametrize("of", ["generator", "discriminator"])
def test_terms_can_be_changed_in_place(make_player, make_objective, of, disc_start):
    """As a sum over processes does: each is a number of its own, and none is the loss or the quantizer's loss."""
    player, objective = make_player(), make_objective(disc_start=disc_start, perceptual_weight=0.0)
    if of == "generator":
        loss, terms = player.generator_loss(objective)
    else:
        loss, terms = objective.discriminator_loss(player.images, player.decode(), step=0)
    value = loss.detach().clone()
    for number, term in enumerate(terms.values()):
        term.fill_(9 + number)
    assert [term.item() for term in terms.values()] == [9 + number for number in range(len(terms))]
    assert torch.equal(loss, value)
    assert player.quantizer_loss == 0.25


@pytest.mark.parametrize(
    "name", ["pixelloss_weight", "perceptual_weight", "disc_weight", "disc_factor", "codebook_weight"]
)
def test_every_weight_changes_loss_and_gradient(player, make_objective, name):
    objective = make_objective()
    found = []
    for weight in (1.0, 1.5):
        setattr(objective, name, weight)
        loss = player.generator_loss(objective).loss
        loss.backward()
        found.append((loss.item(), torch.cat([gradient.flatten() for gradient in player.gradients()])))
    assert found[0][0] != pytest.approx(found[1][0], rel=1e-4)
    assert (found[0][1] - found[1][1]).norm() > 1e-2 * found[0][1].norm()


def test_each_part_pulls_the_reconstructions_its_way(player, make_objective):
    """Towards the images, and up the discriminator's logits."""
    reconstructions = player.decode().detach().requires_grad_()

    def gradient(**weights):
        settings = {"pixelloss_weight": 0.0, "perceptual_weight": 0.0} | weights
        objective = make_objective(discriminator=discriminator, **settings)
        loss = player.generator_loss(objective, reconstructions=reconstructions, last_layer=reconstructions).loss
        return torch.autograd.grad(loss, reconstructions)[0]

    discriminator = nn.Conv2d(3, 1, 3)
    discriminator.eval()
    pixel = gradient(pixelloss_weight=1.0, disc_factor=0.0)
    torch.testing.assert_close(pixel, (reconstructions - player.images).sign().detach() / pixel.numel())
    both = gradient(pixelloss_weight=1.0)
    (uphill,) = torch.autograd.grad(discriminator(reconstructions).mean(), reconstructions)
    torch.testing.assert_close(both - pixel, -uphill * pixel.norm() / uphill.norm(), rtol=1e-3, atol=1e-7)


def test_quantizer_loss_keeps_its_graph(player, make_objective):
    objective = make_objective(codebook_weight=0.5)
    for shape in ((), (1,), (4,)):
        quantizer_loss = torch.full(shape, 2.0, requires_grad=True)
        loss, terms = player.generator_loss(objective, quantizer_loss=quantizer_loss)
        assert loss.shape == ()
        assert terms["quantizer"] == 2
        loss.backward()
        torch.testing.assert_close(quantizer_loss.grad, torch.full(shape, 0.5 / quantizer_loss.numel()))


@pytest.mark.parametrize("shape", [(), (2,), (2, 1, 1, 1)])
def test_perceptual_module_may_be_any(player, make_objective, shape):
    class Distance(nn.Module):
        def forward(self, images, reconstructions):
            return (images - reconstructions).square().mean().expand(shape)

    objective = make_objective(perceptual=Distance(), disc_start=9)
    loss, terms = player.generator_loss(objective)
    torch.testing.assert_close(terms["perceptual"], (player.images - player.decode()).square().mean().detach())
    loss.backward()


def test_one_forward_and_one_backward_through_each_network(player, make_objective):
    objective = make_objective()
    calls = {"decoder": 0, "discriminator": 0, "perceptual": 0}
    backward = dict.fromkeys(calls, 0)

    def count(name, module):
        def after_forward(module, inputs, output):
            calls[name] += 1
            if output.requires_grad:
                output.register_hook(lambda gradient: backward.__setitem__(name, backward[name] + 1))

        module.register_forward_hook(after_forward)

    count("decoder", player.decoder[0])
    count("discriminator", objective.discriminator)
    count("perceptual", objective.perceptual)
    player.generator_loss(objective).loss.backward()
    assert calls == backward == {"decoder": 1, "discriminator": 1, "perceptual": 1}


def test_perceptual_module_without_weight_is_not_called(player, make_objective):
    class Never(nn.Module):
        def forward(self, images, reconstructions):
            raise AssertionError

    assert player.generator_loss(make_objective(perceptual=Never(), perceptual_weight=0.0)).terms["perceptual"] == 0


# --- starts and ramp


def effect(player, objective, step):
    """Share of the adversarial term in the loss, in units of ``adaptive_weight * generator``."""
    loss, terms = player.generator_loss(objective, step=step)
    rest = loss.item() - (terms["reconstruction"] + terms["quantizer"]).item()
    return rest / (terms["adaptive_weight"] * terms["generator"]).item()


def test_generator_follows_from_its_start_on_over_the_ramp(player, make_objective):
    objective = make_objective(disc_start=3, gen_start=5, gen_ramp=4)
    for step in range(5):
        _, terms = player.generator_loss(objective, step=step)
        assert all(terms[name] == 0 for name in ("generator", "adaptive_weight", "logits_fake"))
    shares = [effect(player, objective, step) for step in range(5, 11)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0], rel=1e-3)


def test_generator_starts_with_the_discriminator_unless_told(player, make_objective):
    objective = make_objective(disc_start=3)
    assert player.generator_loss(objective, step=2).terms["generator"] == 0
    assert effect(player, objective, 3) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("settings", [{"disc_start": 1}, {"gen_start": 1}, {"disc_factor": 0.0}])
def test_discriminator_is_not_called_before_the_generator_starts(player, make_objective, settings):
    class Never(nn.Module):
        def forward(self, images):
            raise AssertionError

    objective = make_objective(discriminator=Never(), **settings)
    loss, terms = player.generator_loss(objective, last_layer=None)
    assert list(terms) == TERMS
    loss.backward()
    gradients = player.gradients()
    distance = objective.perceptual(player.images, player.decode()).mean()
    ((player.images - player.decode()).abs().mean() + distance + player.quantizer_loss).backward()
    torch.testing.assert_close(gradients, player.gradients())


def test_step_may_be_a_tensor_but_not_a_fraction(player, make_objective):
    objective = make_objective(disc_start=3)
    assert player.generator_loss(objective, step=torch.tensor(3)).terms["generator"] != 0
    with pytest.raises(TypeError):
        player.generator_loss(objective, step=3.5)


# --- autograd off


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_autograd_the_adversarial_term_is_logged_only(player, make_objective, mode):
    objective = make_objective()
    _, trained = player.generator_loss(objective)
    with mode():
        loss, terms = player.generator_loss(objective)
        without_layer, _ = player.generator_loss(objective, last_layer=None)
    assert list(terms) == TERMS
    assert not loss.requires_grad
    assert terms["adaptive_weight"] == 0
    torch.testing.assert_close(terms["generator"], trained["generator"])
    torch.testing.assert_close(loss, terms["reconstruction"] + terms["quantizer"])
    assert torch.equal(loss, without_layer)


def test_own_mode_has_no_influence(player, make_objective):
    objective = make_objective(discriminator=nn.Conv2d(3, 1, 3))
    losses = [player.generator_loss(objective.train(training)).loss for training in (True, False)]
    assert torch.equal(*losses)


def test_decoder_without_a_graph_trains_the_quantizer_until_the_generator_follows(player, make_objective):
    objective = make_objective(disc_start=1)
    reconstructions = player.decode().detach()
    player.generator_loss(objective, reconstructions=reconstructions).loss.backward()
    assert player.quantizer_loss.grad == 1
    with pytest.raises(ValueError, match="but reconstructions does not require grad"):
        player.generator_loss(objective, reconstructions=reconstructions, step=1)
