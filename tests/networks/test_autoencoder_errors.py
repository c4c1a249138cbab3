"""What encoder and decoder refuse, word for word."""

import pytest
import torch

from vq_components.networks import Decoder, Encoder

CONFIG = {"ch": 4, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "resolution": 8, "z_channels": 6}


def build_encoder(**changes):
    return Encoder(**{**CONFIG, "in_channels": 3, **changes})


def build_decoder(**changes):
    return Decoder(**{**CONFIG, "out_ch": 3, **changes})


def message(error, function, *args, **kwargs):
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(("build", "name"), [(build_encoder, "Encoder"), (build_decoder, "Decoder")])
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"ch_mult": []},
            "has one level per entry of ch_mult and needs at least one, all positive, but got ch_mult=[]. "
            "Pass for example ch_mult=[1, 1, 2, 2, 4].",
        ),
        (
            {"ch_mult": (1, 0)},
            "has one level per entry of ch_mult and needs at least one, all positive, but got ch_mult=[1, 0]. "
            "Pass for example ch_mult=[1, 1, 2, 2, 4].",
        ),
        ({"ch": 0}, "needs a positive ch, but got ch=0. Pass 1 or more."),
        ({"num_res_blocks": 0}, "needs a positive num_res_blocks, but got num_res_blocks=0. Pass 1 or more."),
        ({"z_channels": -1}, "needs a positive z_channels, but got z_channels=-1. Pass 1 or more."),
        (
            {"dropout": 1.5},
            "drops a share of activations, but got dropout=1.5. Pass a number in [0, 1], 0 for none.",
        ),
        (
            {"resolution": 9},
            "with 2 levels needs a resolution that is a multiple of 2, but got resolution=9. "
            "Change resolution or the length of ch_mult.",
        ),
        (
            {"resolution": 0},
            "with 2 levels needs a resolution that is a multiple of 2, but got resolution=0. "
            "Change resolution or the length of ch_mult.",
        ),
        (
            {"attn_resolutions": [16, 4, 2]},
            "has levels of resolution [8, 4], but attn_resolutions also names [2, 16], where no attention can be. "
            "Pass a subset of the levels, counted from resolution=8.",
        ),
    ],
)
def test_constructors_say_what_is_wrong(build, name, changes, text):
    assert message(ValueError, build, **changes) == f"{name} {text}"


def test_constructors_check_the_channels_of_images():
    assert message(ValueError, build_encoder, in_channels=0) == (
        "Encoder needs a positive in_channels, but got in_channels=0. Pass 1 or more."
    )
    assert (
        message(ValueError, build_decoder, out_ch=0)
        == "Decoder needs a positive out_ch, but got out_ch=0. Pass 1 or more."
    )


@pytest.mark.parametrize("build", [build_encoder, build_decoder])
def test_a_misspelled_keyword_is_an_error(build):
    with pytest.raises(TypeError, match="unexpected keyword argument 'dropuot'"):
        build(dropuot=0.1)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 8, 8, 3)])
def test_encoder_names_the_channels_that_it_takes(shape):
    assert message(ValueError, build_encoder(), torch.zeros(shape)) == (
        f"Encoder takes images of shape (B, 3, H, W), but got shape {shape}. "
        f"Reorder or convert the images, or build Encoder for {shape[1]} channels."
    )


def test_encoder_takes_batches():
    assert message(ValueError, build_encoder(), torch.zeros(3, 8, 8)) == (
        "Encoder takes images of shape (B, C, H, W), but got shape (3, 8, 8). "
        "Pass a batch, a single image as images[None]."
    )


@pytest.mark.parametrize("size", [(8, 7), (9, 8), (0, 8)])
def test_encoder_names_the_sizes_that_it_takes(size):
    assert message(ValueError, build_encoder(), torch.zeros(2, 3, *size)) == (
        f"Encoder needs images whose height and width are multiples of 2, but got {size[0]} x {size[1]}. "
        f"Resize, crop or pad the images."
    )


def test_encoder_takes_no_integers():
    assert message(TypeError, build_encoder(), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)) == (
        "Encoder takes floating-point images in [-1, 1], but got torch.uint8. "
        "Convert 8-bit images with images / 127.5 - 1."
    )


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (6, 4, 4), (2, 4, 4, 6)])
def test_decoder_names_the_shape_that_it_takes(shape):
    assert message(ValueError, build_decoder(), torch.zeros(shape)) == (
        f"Decoder takes latent vectors of shape (B, 6, H, W), but got shape {shape}. "
        f"Reorder the dimensions, or build Decoder with another z_channels."
    )
