"""NLayerDiscriminator: the original's values, names and start; sizes; modes of use."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn
from torch.func import functional_call

from vq_components.networks import ActNorm, NLayerDiscriminator

NORMS = pytest.mark.parametrize("use_actnorm", [False, True])


def build(use_actnorm=False):
    return NLayerDiscriminator(ndf=4, n_layers=2, use_actnorm=use_actnorm), torch.rand(2, 3, 16, 20) * 2 - 1


@pytest.mark.parametrize("name", ["discriminator_batchnorm", "discriminator_actnorm"])
def test_values_and_statistics_are_the_originals(golden, name):
    reference = golden(name)
    after = {
        k.removeprefix("weights_after."): v for k, v in reference.tensors.items() if k.startswith("weights_after.")
    }
    discriminator = NLayerDiscriminator(**reference.args)
    discriminator.load_state_dict(reference.weights)

    logits = discriminator.train()(reference.tensors["x"])
    torch.testing.assert_close(logits, reference.tensors["logits_train"], rtol=1e-5, atol=1e-5)
    assert discriminator.state_dict().keys() == after.keys()
    for key, value in discriminator.state_dict().items():
        torch.testing.assert_close(value, after[key], rtol=1e-5, atol=1e-6, msg=key)

    logits = discriminator.eval()(reference.tensors["x"])
    torch.testing.assert_close(logits, reference.tensors["logits_eval_after"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("use_actnorm", "entries", "elements"), [(False, 22, 2_767_428), (True, 19, 2_766_532)])
def test_the_default_has_the_published_entries(use_actnorm, entries, elements):
    state = NLayerDiscriminator(use_actnorm=use_actnorm).state_dict()
    assert len(state) == entries
    assert sum(value.numel() for value in state.values()) == elements


def test_widths_double_up_to_eight_times_ndf():
    convolutions = [m for m in NLayerDiscriminator(5, 2, 5).main if isinstance(m, nn.Conv2d)]
    assert [conv.in_channels for conv in convolutions] == [5, 2, 4, 8, 16, 16, 16]
    assert [conv.stride[0] for conv in convolutions] == [2, 2, 2, 2, 2, 1, 1]


@NORMS
def test_starts_from_narrow_normal_weights(use_actnorm):
    discriminator = NLayerDiscriminator(n_layers=2, use_actnorm=use_actnorm)
    widths = {conv: conv.weight for conv in discriminator.main if isinstance(conv, nn.Conv2d)}
    norms = [norm for norm in discriminator.main if isinstance(norm, nn.BatchNorm2d)]
    for weight in widths.values():  # of 3,072 to 524,288 samples: 3 standard errors of the standard deviation are 4 %
        assert abs(weight.std() / 0.02 - 1) < 0.04
        assert abs(weight.mean()) < 3 * 0.02 / weight.numel() ** 0.5
    assert [conv.bias is not None for conv in widths] == [True, use_actnorm, use_actnorm, True]
    assert len(norms) == (0 if use_actnorm else 2)
    for norm in norms:  # of 128 and 256 samples
        assert abs(norm.weight.std() / 0.02 - 1) < 0.25
        assert abs(norm.weight.mean() - 1) < 3 * 0.02 / 128**0.5
        assert not norm.bias.any()


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
def test_min_input_size_is_the_smallest_that_works(n_layers):
    discriminator = NLayerDiscriminator(ndf=1, n_layers=n_layers).eval()
    smallest = discriminator.min_input_size
    assert discriminator(torch.zeros(1, 3, smallest, smallest)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        discriminator.main(torch.zeros(1, 3, smallest, smallest - 1))


@pytest.mark.parametrize("size", [(24, 24), (31, 47), (64, 40)])
def test_number_of_logits(size):
    logits = NLayerDiscriminator(ndf=1)(torch.zeros(2, 3, *size))
    assert logits.shape == (2, 1, size[0] // 8 - 2, size[1] // 8 - 2)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_receptive_field_is_the_documented_one(n_layers):
    """So far the gradient of one logit in the middle reaches; in float64, so that none of it is rounded away."""
    field = 9 * 2**n_layers - 2
    discriminator = NLayerDiscriminator(ndf=2, n_layers=n_layers).double().eval()
    images = torch.rand(1, 3, 2 * field, 2 * field, dtype=torch.float64, requires_grad=True)
    logits = discriminator(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    reached = images.grad.abs().sum(dim=(0, 1)).nonzero()
    assert (reached.max(dim=0).values - reached.min(dim=0).values + 1).tolist() == [field, field]


def test_takes_images_with_a_condition():
    images, condition = torch.zeros(2, 3, 16, 16), torch.zeros(2, 5, 16, 16)
    assert NLayerDiscriminator(8, 4, 2)(torch.cat([images, condition], dim=1)).shape == (2, 1, 2, 2)


@NORMS
def test_every_parameter_gets_a_gradient_through_several_forwards(use_actnorm):
    discriminator, images = build(use_actnorm)
    (discriminator(images).square().mean() + discriminator(-images).square().mean()).backward()
    for key, parameter in discriminator.named_parameters():
        assert parameter.grad.any(), key


@NORMS
def test_a_forward_on_copies_leaves_the_discriminator_as_it_is(use_actnorm):
    discriminator, images = build(use_actnorm)
    before = copy.deepcopy(discriminator.state_dict())
    logits = functional_call(discriminator, copy.deepcopy(before), (images,))
    for key, value in discriminator.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(discriminator(images), logits)


@NORMS
def test_forward_sets_nothing_but_statistics(use_actnorm, capsys):
    discriminator, images = build(use_actnorm)
    attributes = {key: dict(vars(module)) for key, module in discriminator.named_modules()}
    tensors, before = [*discriminator.parameters(), *discriminator.buffers()], images.clone()
    discriminator(images)
    assert capsys.readouterr() == ("", "")
    assert {key: dict(vars(module)) for key, module in discriminator.named_modules()} == attributes
    for tensor, other in zip(tensors, [*discriminator.parameters(), *discriminator.buffers()], strict=True):
        assert tensor is other
    assert torch.equal(images, before)
    state = copy.deepcopy(discriminator.state_dict())
    discriminator.eval()(-images)
    for key, value in discriminator.state_dict().items():
        assert torch.equal(value, state[key]), key


@NORMS
def test_compiles_without_a_break_to_the_same_values(use_actnorm):
    discriminator, images = build(use_actnorm)
    twin = copy.deepcopy(discriminator)
    compiled = torch.compile(discriminator, fullgraph=True, backend="aot_eager")
    losses = [call(images).mean() - call(-images).square().mean() for call in (compiled, twin)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for key, value in discriminator.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[key])
    for parameter, other in zip(discriminator.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


@NORMS
def test_survives_copies_and_pickle(use_actnorm):
    discriminator, images = build(use_actnorm)
    discriminator(images)
    discriminator.eval()
    for twin in (copy.deepcopy(discriminator), pickle.loads(pickle.dumps(discriminator))):
        assert torch.equal(twin(images), discriminator(images))


@NORMS
def test_autocast_and_channels_last(use_actnorm):
    discriminator, images = build(use_actnorm)
    twin, channels_last = copy.deepcopy(discriminator), torch.channels_last
    expected = copy.deepcopy(discriminator)(images)
    with torch.autocast("cpu", torch.bfloat16):
        logits = discriminator(images)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.1)
    logits = twin.to(memory_format=channels_last)(images.to(memory_format=channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_use_actnorm_replaces_every_batch_normalization():
    kinds = [type(module) for module in build(use_actnorm=True)[0].main]
    assert kinds.count(ActNorm) == 2
    assert kinds.count(nn.BatchNorm2d) == 0


@pytest.mark.parametrize("name", ["input_nc", "ndf", "n_layers"])
def test_constructor_wants_positive_numbers(name):
    text = f"NLayerDiscriminator needs a positive {name}, but got {name}=0. Pass 1 or more."
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        NLayerDiscriminator(**{name: 0})


@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        (
            torch.zeros(1, 3, 24, 23),
            ValueError,
            "NLayerDiscriminator with n_layers=3 needs images of at least 24 x 24, but got 24 x 23. "
            "Pass larger images, or lower n_layers.",
        ),
        (
            torch.zeros(1, 1, 64, 64),
            ValueError,
            "NLayerDiscriminator takes images of shape (B, 3, H, W), but got shape (1, 1, 64, 64). "
            "Reorder or convert the images, or build NLayerDiscriminator for 1 channels.",
        ),
        (
            torch.zeros(3, 64, 64),
            ValueError,
            "NLayerDiscriminator takes images of shape (B, C, H, W), but got shape (3, 64, 64). "
            "Pass a batch, a single image as images[None].",
        ),
        (
            torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
            TypeError,
            "NLayerDiscriminator takes floating-point images in [-1, 1], but got torch.uint8. "
            "Convert 8-bit images with images / 127.5 - 1.",
        ),
    ],
)
def test_forward_says_what_is_wrong(images, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        NLayerDiscriminator(ndf=1)(images)
