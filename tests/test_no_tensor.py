"""What is no tensor, or no quantizer, where the model, its networks and its loss take one."""

import re

import pytest
import torch
from torch import nn

from vq_components import Encoder, NLayerDiscriminator, VectorQuantizer, VQGANLoss, VQModel

IMAGES = torch.zeros(2, 3, 8, 8)


def build_model():
    return VQModel(nn.Conv2d(3, 4, 4, 4), VectorQuantizer(16, 4), nn.ConvTranspose2d(4, 3, 4, 4), z_channels=4)


def raises(text):
    return pytest.raises(TypeError, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize(("wrong", "came"), [(IMAGES.numpy(), "ndarray"), ([IMAGES, torch.zeros(2)], "list")])
def test_a_batch_of_a_loader_is_no_tensor_of_images(wrong, came):
    sizes = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (), "resolution": 8}
    for module in (build_model(), Encoder(in_channels=3, z_channels=4, **sizes), NLayerDiscriminator()):
        with raises(
            f"{type(module).__name__} takes a tensor of images, but got {came}. "
            f"Convert arrays with torch.as_tensor(...); of a loader's batch, pass the images alone."
        ):
            module(wrong)


@pytest.mark.parametrize("method", ["encode", "features"])
def test_the_model_checks_images_in_every_call(method):
    with pytest.raises(TypeError, match=r"^VQModel takes a tensor of images, but got tuple"):
        getattr(build_model(), method)((IMAGES,))


@pytest.mark.parametrize(
    ("wrong", "came"), [(nn.Identity(), "Identity"), (VectorQuantizer, "the class VectorQuantizer")]
)
def test_the_model_takes_a_quantizer(wrong, came):
    with raises(
        f"VQModel takes a quantizer between encoder and decoder, but got {came}. Pass one, built, as "
        f"VQModel(encoder, quantizer, decoder); one of your own extends AbstractQuantizer."
    ):
        VQModel(nn.Conv2d(3, 4, 4, 4), wrong, nn.ConvTranspose2d(4, 3, 4, 4), z_channels=4)


@pytest.mark.parametrize("argument", ["images", "reconstructions", "quantizer_loss"])
@pytest.mark.parametrize("step", [0, 9])  # without and with the discriminator
def test_the_loss_says_which_argument_is_no_tensor(argument, step):
    model, discriminator = build_model(), NLayerDiscriminator(ndf=8, n_layers=1)
    objective = VQGANLoss(discriminator, None, perceptual_weight=0.0, disc_start=5)
    output = model(IMAGES)
    arguments = {"images": IMAGES, "reconstructions": output.reconstructions, "quantizer_loss": output.loss}
    last_layer = model.decoder.weight
    for wrong in (output, output.terms, 0.0):
        with raises(
            f"{argument} must be a tensor, but got {type(wrong).__name__}. Of what a model or quantizer returns, pass "
            f"the field: out.reconstructions, out.loss. Without a quantizer, quantizer_loss is torch.zeros(())."
        ):
            objective.generator_loss(**{**arguments, argument: wrong}, last_layer=last_layer, step=step)
    if argument != "quantizer_loss":
        with pytest.raises(TypeError, match=f"^{argument} must be a tensor, but got VQModelOutput"):
            objective.discriminator_loss(
                **{name: output if name == argument else IMAGES for name in ("images", "reconstructions")}, step=step
            )
