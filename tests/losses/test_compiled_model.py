"""A compiled autoencoder in the adversary's loop: the adaptive weight goes back through the compiler's graph."""

import copy
import re

import pytest
import torch
from torch import nn

from vq_components import Decoder, EMAVectorQuantizer, Encoder, NLayerDiscriminator, VQGANLoss, VQModel

SIZES = {"ch": 4, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (), "resolution": 8, "z_channels": 4}
STEPS = 4


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def build_model(**settings):
    return VQModel(
        Encoder(in_channels=3, **SIZES, **settings), EMAVectorQuantizer(16, 4), Decoder(out_ch=3, **SIZES, **settings)
    )


def build_objective(**settings):
    return VQGANLoss(NLayerDiscriminator(ndf=4, n_layers=1), None, perceptual_weight=0.0, **settings)


def compile_last_layer_apart(model):
    model.decoder.conv_out.register_forward_pre_hook(torch.compiler.disable(lambda *_: None))
    return torch.compile(model, backend="aot_eager")


def train(forward, model, objective):
    """Losses, terms, and gradients of each step, as lists."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    disc_optimizer = torch.optim.SGD(objective.discriminator.parameters(), lr=0.01)
    model.update_after(optimizer)
    log = []
    for step in range(STEPS):
        images = torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1
        out = forward(images)
        given = {"quantizer_loss": out.loss, "last_layer": model.last_layer, "step": step}
        loss, terms = objective.generator_loss(images, out.reconstructions, **given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        disc_loss, disc_terms = objective.discriminator_loss(images, out.reconstructions, step=step)
        disc_optimizer.zero_grad()
        disc_loss.backward()
        disc_optimizer.step()
        parameters = [*model.parameters(), *objective.discriminator.parameters()]
        gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
        log.append([loss.detach(), terms, disc_loss.detach(), disc_terms, gradients])
    return log


# Dynamo looks at the `.grad` of whatever crosses a graph break, and hides the warning in a way that an error survives.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_with_its_last_layer_apart_it_trains_as_the_eager_one(checkpoint_activations):
    """Steps before and after the generator meets the discriminator, with the compiler's own settings."""
    model, objective = build_model(checkpoint_activations=checkpoint_activations), build_objective(disc_start=2)
    expected = train(*2 * [copy.deepcopy(model)], copy.deepcopy(objective))
    torch.testing.assert_close(train(compile_last_layer_apart(model), model, objective), expected)
    weights = [terms["adaptive_weight"] for _, terms, *_ in expected]
    assert [float(weight) > 0 for weight in weights] == [False, False, True, True]


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_as_one_graph_that_can_be_kept_it_trains_as_the_eager_one(checkpoint_activations):
    model, objective = build_model(checkpoint_activations=checkpoint_activations), build_objective(disc_start=2)
    expected = train(*2 * [copy.deepcopy(model)], copy.deepcopy(objective))
    with torch._functorch.config.patch(donated_buffer=False):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(train(compiled, model, objective), expected)


def test_a_graph_that_cannot_be_kept_is_refused_from_the_first_step_on():
    """And not thousands of steps later, when the generator meets the discriminator."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 3, 3, padding=1))
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    with torch._functorch.config.patch(donated_buffer=True):
        reconstructions = torch.compile(model, backend="aot_eager")(images)
    given = {"quantizer_loss": torch.tensor(0.0), "last_layer": model[-1].weight, "step": 0}
    message = (
        "The adaptive weight will need several backward passes through the graph between the last layer and the "
        "reconstructions, but torch.compile has made that graph for a single one. Compile the last layer apart, by "
        "torch.compiler.disable(lambda *_: None) as its forward pre-hook, or set "
        "torch._functorch.config.donated_buffer = False before the first forward."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        build_objective(disc_start=1).generator_loss(images, reconstructions, **given)
    for objective, changes in (
        (build_objective(disc_start=1, disc_factor=0.0), {}),  # it will never need the graph
        (build_objective(disc_start=1), {"last_layer": None}),  # it does not know yet
    ):
        loss, _ = objective.generator_loss(images, reconstructions, **{**given, **changes})
        assert loss > 0
