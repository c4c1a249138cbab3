"""Under torch.compile, activation checkpointing and DistributedDataParallel."""

import copy
import inspect
import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from vq_components.functional._adversarial import adaptive_weight

# Dynamo looks at the `.grad` of whatever crosses a graph break, and hides the warning in a way that an error survives.
ignore_grad_warning = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@ignore_grad_warning
def test_a_compiled_training_step_gives_the_same(player, make_objective):
    objective = make_objective(disc_start=1)
    twin, twin_objective = copy.deepcopy(player), copy.deepcopy(objective)

    def step(player, objective, number):
        reconstructions = player.decode()
        generator = player.generator_loss(objective, reconstructions=reconstructions, step=number)
        discriminator = objective.discriminator_loss(player.images, reconstructions, step=number)
        return generator.loss, generator.terms, discriminator.loss, discriminator.terms

    compiled = torch.compile(step, backend="eager")
    for number in range(3):
        expected, found = step(player, objective, number), compiled(twin, twin_objective, number)
        torch.testing.assert_close(found, expected)
        for results in (expected, found):
            results[0].backward()
            results[2].backward()
        torch.testing.assert_close(twin.gradients(), player.gradients())
    for one, other in zip(twin_objective.discriminator.parameters(), objective.discriminator.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@ignore_grad_warning
def test_compiled_parts_give_the_same(player, make_objective):
    """The generator's pass uses the compiled discriminator, on copies; the decoder's graph serves two norms."""
    objective = make_objective()
    expected = player.generator_loss(objective)
    expected.loss.backward()
    gradients = player.gradients()
    before = {name: value.clone() for name, value in objective.discriminator.state_dict().items()}
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph

    objective.discriminator = torch.compile(objective.discriminator, backend=backend)
    player.decoder = torch.compile(player.decoder, backend="aot_eager")
    found = player.generator_loss(objective)
    found.loss.backward()
    assert calls
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(player.gradients(), gradients)
    state = objective.discriminator._orig_mod.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in objective.discriminator.parameters())


def test_activation_checkpointing_gives_the_same(player, make_objective):
    objective = make_objective()
    player.generator_loss(objective).loss.backward()
    expected = player.gradients()
    reconstructions = checkpoint(player.decoder, player.latents, use_reentrant=False)
    player.generator_loss(objective, reconstructions=reconstructions).loss.backward()
    torch.testing.assert_close(player.gradients(), expected)
    reconstructions = checkpoint(player.decoder, player.latents, use_reentrant=True)
    with pytest.raises(ValueError, match="activation checkpointing with use_reentrant=True"):
        player.generator_loss(objective, reconstructions=reconstructions)


@pytest.fixture
def process_group(tmp_path):
    """A group of this process alone."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


# A discriminator runs twice before its backward: older versions of torch raise if DDP broadcasts buffers in between.
IS_OLD = "forward_sync_buffers" not in inspect.signature(DistributedDataParallel).parameters
FOR_TWO_FORWARDS = {"broadcast_buffers": False} if IS_OLD else {}


def wrapped(module):
    return DistributedDataParallel(module, **FOR_TWO_FORWARDS)


def wrapped_twice(module):
    return torch.compile(wrapped(module), backend="eager")


@pytest.mark.parametrize("wrap", [wrapped, wrapped_twice, nn.DataParallel])
def test_wrapped_discriminator_is_unwrapped_in_the_generator_pass_only(process_group, player, make_objective, wrap):
    objective = make_objective()
    expected = player.generator_loss(objective).terms
    inner = objective.discriminator
    objective.discriminator = wrap(inner)
    calls = []
    outer = getattr(objective.discriminator, "_orig_mod", objective.discriminator)
    outer.register_forward_hook(lambda *_: calls.append("wrapper"))
    torch.testing.assert_close(player.generator_loss(objective).terms, expected)
    assert calls == []
    objective.discriminator_loss(player.images, player.decode(), step=0).loss.backward()
    assert calls == ["wrapper", "wrapper"]
    assert all(parameter.grad is not None for parameter in inner.parameters())


def test_static_graph_whose_first_backward_would_be_internal_raises(process_group, player, make_objective):
    """It would never synchronize gradients, and not say so."""
    message = (
        "The adaptive weight's gradient would be the first backward pass of "
        "DistributedDataParallel(static_graph=True), which would then never synchronize gradients. "
        "Wrap the model with static_graph=False."
    )
    objective = make_objective(disc_start=1)
    model = DistributedDataParallel(player.decoder, static_graph=True)
    reconstructions = model(player.latents)
    for call in (
        lambda: player.generator_loss(objective, reconstructions=reconstructions.tanh(), step=1),
        lambda: adaptive_weight(reconstructions.square().mean(), reconstructions.mean(), player.last_layer),
    ):
        with pytest.raises(RuntimeError, match="static_graph") as error:
            call()
        assert str(error.value) == message

    player.generator_loss(objective, reconstructions=reconstructions, step=0).loss.backward()
    player.generator_loss(objective, reconstructions=model(player.latents), step=1).loss.backward()


@pytest.mark.parametrize("settings", [{}, {"find_unused_parameters": True}])
def test_wrapped_model_gives_the_same(process_group, player, make_objective, settings):
    objective = make_objective()
    player.generator_loss(objective).loss.backward()
    expected = player.gradients()
    model = DistributedDataParallel(player.decoder, **settings)
    player.generator_loss(objective, reconstructions=model(player.latents)).loss.backward()
    torch.testing.assert_close(player.gradients(), expected)


TWO_PROCESSES = """
import json
import os
import sys
import time
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from vq_components.losses import VQGANLoss
from vq_components.networks import NLayerDiscriminator

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
decoder = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 3, 3, padding=1))
discriminator = NLayerDiscriminator(ndf=4, n_layers=1)
images, latents = torch.rand(2, 2, 3, 16, 16) * 2 - 1, torch.randn(2, 2, 4, 16, 16)


def gradients(decoder, discriminator, part):
    objective = VQGANLoss(discriminator, None, perceptual_weight=0.0, disc_start=0)
    reconstructions = decoder(latents[part])
    last_layer = getattr(decoder, "module", decoder)[-1].weight
    given = {"quantizer_loss": torch.tensor(0.0), "last_layer": last_layer, "step": 0}
    objective.generator_loss(images[part], reconstructions, **given).loss.backward()
    objective.discriminator_loss(images[part], reconstructions, step=0).loss.backward()
    found = [parameter.grad for module in (decoder, discriminator) for parameter in module.parameters()]
    decoder.zero_grad(), discriminator.zero_grad()
    return found


parts = [gradients(decoder, discriminator, part) for part in range(2)]
expected = [(one + other) / 2 for one, other in zip(*parts)]
wrapped = DistributedDataParallel(decoder), DistributedDataParallel(discriminator, **json.loads(sys.argv[3]))
torch.testing.assert_close(gradients(*wrapped, rank), expected)
distributed.barrier()
time.sleep(0.5)  # so that the other has left the barrier too
os._exit(0)  # gloo's threads can abort a process that takes them down one by one
"""


def test_two_processes_get_the_mean_of_both_gradients(tmp_path):
    command = [sys.executable, "-c", TWO_PROCESSES]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), json.dumps(FOR_TWO_FORWARDS)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
