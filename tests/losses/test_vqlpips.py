"""The original's constructor and call, and what the objective refuses."""

import copy
import pickle

import pytest
import torch
from torch import nn

from vq_components.losses import VQGANLoss, VQLPIPSWithDiscriminator, _vqlpips
from vq_components.networks import ActNorm

GENERATOR_LOG = ["total_loss", "quant_loss", "nll_loss", "rec_loss", "p_loss", "d_weight", "disc_factor", "g_loss"]
DISCRIMINATOR_LOG = ["disc_loss", "logits_real", "logits_fake"]
SMALL = {"disc_start": 2, "disc_num_layers": 1, "disc_ndf": 8, "perceptual_weight": 0.0}


def test_constructor_builds_the_originals_networks():
    objective = VQLPIPSWithDiscriminator(0, 1.0, 1.0, 2, 5, 1.0, 1.0, 0.0, True, True, 16, "vanilla")
    convolutions = [module for module in objective.discriminator.modules() if isinstance(module, nn.Conv2d)]
    assert [convolution.out_channels for convolution in convolutions] == [16, 32, 64, 1]
    assert convolutions[0].in_channels == 5
    assert any(isinstance(module, ActNorm) for module in objective.discriminator.modules())
    assert objective.perceptual is None


def test_lpips_is_built_only_where_it_has_a_weight(monkeypatch):
    built = []

    def build(net):
        built.append(net)
        return nn.Identity()

    monkeypatch.setattr(_vqlpips, "LPIPSLoss", build)
    VQLPIPSWithDiscriminator(**SMALL)
    VQLPIPSWithDiscriminator(**SMALL | {"perceptual_weight": 1.0}, perceptual=nn.Identity())
    assert built == []
    VQLPIPSWithDiscriminator(**SMALL | {"perceptual_weight": 1.0})
    assert built == ["vgg"]


def test_given_networks_are_used():
    discriminator, perceptual = nn.Conv2d(3, 1, 3), nn.Identity()
    objective = VQLPIPSWithDiscriminator(0, discriminator=discriminator, perceptual=perceptual)
    assert objective.discriminator is discriminator
    assert objective.perceptual is perceptual


def test_state_is_that_of_the_discriminator_alone(squeeze, player):
    objective = VQLPIPSWithDiscriminator(**SMALL | {"perceptual_weight": 1.0}, perceptual=squeeze)
    assert {name.split(".")[0] for name in objective.state_dict()} == {"discriminator"}
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == {"discriminator"}


@pytest.mark.parametrize("make", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_objective_can_be_copied(player, make):
    objective = VQLPIPSWithDiscriminator(**SMALL)
    player.generator_loss(objective, step=2).loss.backward()
    losses = [player.generator_loss(module, step=2).loss for module in (objective, make(objective))]
    assert torch.equal(*losses)


@pytest.mark.parametrize("step", [0, 2, 3, 9])
def test_call_is_the_two_methods_under_the_originals_names(player, step):
    objective = VQLPIPSWithDiscriminator(**SMALL, disc_weight=0.8, disc_factor=0.5, gen_start=3, gen_ramp=2)
    reconstructions = player.decode()
    given = player.quantizer_loss, player.images, reconstructions
    loss, log = objective(*given, 0, step, last_layer=player.last_layer)
    expected, terms = player.generator_loss(objective, reconstructions=reconstructions, step=step)
    assert torch.equal(loss, expected)
    assert list(log) == [f"train/{name}" for name in GENERATOR_LOG]
    factor = {0: 0.0, 2: 0.0, 3: 0.25, 9: 0.5}[step]
    assert log == {
        "train/total_loss": loss,
        "train/quant_loss": terms["quantizer"],
        "train/nll_loss": terms["reconstruction"],
        "train/rec_loss": terms["reconstruction"],
        "train/p_loss": terms["perceptual"],
        "train/d_weight": terms["adaptive_weight"] * 0.8,
        "train/disc_factor": factor,
        "train/g_loss": terms["generator"],
    }
    loss_d, log_d = objective.eval()(*given, 1, step, split="val")
    expected, terms = objective.discriminator_loss(player.images, reconstructions, step=step)
    assert list(log_d) == [f"val/{name}" for name in DISCRIMINATOR_LOG]
    assert torch.equal(loss_d, expected)
    assert log_d == {"val/disc_loss": loss_d, **{f"val/{name}": terms[name] for name in DISCRIMINATOR_LOG[1:]}}
    for value in (log | log_d).values():
        assert (value.shape, value.dtype, value.requires_grad) == ((), torch.float32, False)


def test_call_knows_two_players(player):
    with pytest.raises(ValueError, match="optimizer_idx") as error:
        VQLPIPSWithDiscriminator(**SMALL)(player.quantizer_loss, player.images, player.images, 2, 0)
    assert str(error.value) == "optimizer_idx must be 0 (generator) or 1 (discriminator), but got 2."


def test_condition_is_further_channels_of_the_discriminators_input(player):
    settings = SMALL | {"disc_in_channels": 5, "disc_conditional": True, "disc_start": 0}
    objective, cond = VQLPIPSWithDiscriminator(**settings), torch.randn(2, 2, 16, 16)
    seen = []
    objective.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    reconstructions = player.decode()
    player.generator_loss(objective, reconstructions=reconstructions, cond=cond).loss.backward()
    objective.discriminator_loss(player.images, reconstructions, step=0, cond=cond)
    fake, real = (torch.cat((images, cond), dim=1) for images in (reconstructions.detach(), player.images))
    torch.testing.assert_close(seen, [fake, real, fake])


@pytest.mark.parametrize(
    ("conditional", "cond", "given"),
    [(True, None, "None"), (False, torch.zeros(2, 1, 16, 16), "of shape (2, 1, 16, 16)")],
)
def test_condition_has_to_be_announced(player, conditional, cond, given):
    """At every step, not only where it is needed."""
    objective = VQLPIPSWithDiscriminator(**SMALL, disc_conditional=conditional)
    for call in (
        lambda: player.generator_loss(objective, cond=cond),
        lambda: objective.discriminator_loss(player.images, player.images, step=0, cond=cond),
    ):
        with pytest.raises(ValueError, match="cond must") as error:
            call()
        assert str(error.value) == (
            "cond must be given if and only if disc_conditional is set, "
            f"but got disc_conditional={conditional} and cond={given}."
        )


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"disc_loss": "wgan"}, "disc_loss must be one of 'hinge', 'vanilla', 'non_saturating', but got 'wgan'."),
        (
            {"gen_start": 1},
            "gen_start must not be before disc_start, but got gen_start=1 and disc_start=2: "
            "the generator would follow an untrained discriminator.",
        ),
        ({"gen_ramp": -1}, "gen_ramp is a number of steps, 0 for no ramp, but got -1."),
        ({"disc_weight": -0.5}, "disc_weight must not be negative, but got -0.5."),
        ({"delta": float("nan")}, "delta must not be negative, but got nan."),
        (
            {"perceptual_weight": 1.0},
            "Without a perceptual module perceptual_weight must be 0, but got 1.0. "
            "Pass a module, for example LPIPSLoss(), or perceptual_weight=0.",
        ),
    ],
)
def test_settings_out_of_range_raise(settings, message):
    settings = {"disc_start": 2, "perceptual_weight": 0.0} | settings
    with pytest.raises(ValueError, match="but got") as error:
        VQGANLoss(nn.Identity(), None, **settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"images": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)},
            TypeError,
            "The loss compares floating-point images in [-1, 1], but images are torch.uint8. "
            "Convert 8-bit images with images / 127.5 - 1.",
        ),
        (
            {"images": torch.zeros(2, 1, 16, 16)},
            ValueError,
            "The loss compares images and reconstructions of one shape (B, C, H, W), "
            "but got (2, 1, 16, 16) and (2, 3, 16, 16).",
        ),
        (
            {"cond": torch.zeros(2, 1, 8, 8)},
            ValueError,
            "cond is given to the discriminator as further channels of images of shape (2, 3, 16, 16), "
            "but got shape (2, 1, 8, 8). Give it the same batch, height and width.",
        ),
        (
            {"last_layer": None},
            TypeError,
            "last_layer must be the weight of the decoder's last layer, a tensor, but got NoneType. "
            "Pass for example decoder.conv_out.weight.",
        ),
    ],
)
def test_inputs_that_do_not_fit_raise(player, make_objective, changes, error, message):
    with pytest.raises(error) as raised:
        player.generator_loss(make_objective(), **changes)
    assert str(raised.value) == message


def test_a_map_of_perceptual_distances_raises(player, make_objective):
    class Map(nn.Module):
        def forward(self, images, reconstructions):
            return (images - reconstructions).square()

    with pytest.raises(ValueError, match="perceptual") as error:
        player.generator_loss(make_objective(perceptual=Map()))
    assert str(error.value) == (
        "The perceptual module must return shape (), (B,) or (B, 1, 1, 1) for a batch of 2, "
        "but returned (2, 3, 16, 16). Average over the remaining dimensions."
    )


@pytest.mark.parametrize(
    ("case", "reason"),
    [("frozen", "last_layer does not require grad"), ("elsewhere", "last_layer is not in its graph")],
)
def test_a_last_layer_without_gradient_raises(player, make_objective, case, reason):
    last_layer = torch.zeros(3, requires_grad=case == "elsewhere")
    with pytest.raises(ValueError, match="The adaptive weight") as error:
        player.generator_loss(make_objective(), last_layer=last_layer)
    assert str(error.value) == (
        f"The adaptive weight needs the gradient of reconstructions at last_layer, but {reason}. Likely causes: the "
        "layer is frozen, the decoder ran under torch.no_grad(), activation checkpointing with use_reentrant=True, or "
        "per-module sharding that replaced the parameter. Pass the weight that the decoder used in this step."
    )
