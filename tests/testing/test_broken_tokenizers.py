"""Checks of tokenizers seen red: a small one that is right, and what is wrong with others."""

import dataclasses

import pytest
import torch
from torch import nn

from vq_components import VectorQuantizer, testing
from vq_components.testing import CheckError, CheckFailure, TokenizerAdapter, TokenizerTraits

TRAITS = TokenizerTraits(image_shape=(3, 32, 32), factor=4, codebook_size=16, local=True, half=False)


class Plain(nn.Module):
    """Convolutions around a quantizer, with parts to be replaced."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 4, 1))
        self.vq = VectorQuantizer(16, 4)
        self.up = nn.Sequential(nn.Conv2d(4, 16, 1), nn.Tanh(), nn.ConvTranspose2d(16, 3, 4, 4))

    def latents(self, images):
        return self.down(images)

    def decoded(self, latents, quantized, indices):
        return self.up(quantized)

    def forward(self, images):
        latents = self.latents(images)
        quantized, indices, loss, _ = self.vq(latents)
        return self.decoded(latents, quantized, indices), indices, loss

    @torch.no_grad()
    def encode(self, images):
        return self.vq.encode(self.latents(images))

    def decode(self, indices):
        return self.up(self.vq.decode(indices))

    def update_(self):
        self.vq.update_()


def scrambled(self, images):
    h = self.down(images)
    return h.permute(0, 2, 3, 1).reshape(h.shape)


def shuffled(self, latents, quantized, indices):
    return self.up(quantized.roll(3, dims=3))


BROKEN = {
    "no straight-through": (
        "check_tokenizer_gradients",
        {"decoded": lambda self, latents, quantized, indices: self.up(self.vq.decode(indices))},
    ),
    "detached": ("check_tokenizer_gradients", {"decoded": lambda self, _, quantized, __: self.up(quantized.detach())}),
    "scrambled": ("check_token_places", {"latents": scrambled}),
    "moved": (
        "check_token_places",
        {"decoded": shuffled, "decode": lambda self, indices: self.up(self.vq.decode(indices).roll(3, dims=3))},
    ),
}  # fmt: skip


def test_a_plain_one_raises_no_alarm():
    torch.manual_seed(0)
    report = testing.check_tokenizer(Plain(), traits=TRAITS)
    assert "check_token_places" in report.passed
    assert "check_image_range: needs bounded=True" in str(report)


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_seen(what):
    torch.manual_seed(0)
    check, methods = BROKEN[what]
    with pytest.raises(CheckError) as error:
        testing.check_tokenizer(type("Broken", (Plain,), methods)(), traits=TRAITS)
    assert [failure.check for failure in error.value.failures] == [check]


def test_an_encoder_that_is_frozen_raises_no_alarm():
    torch.manual_seed(0)
    model = type("Frozen", (Plain,), {"latents": lambda self, images: self.down(images).detach()})()
    model.down.requires_grad_(False)
    testing.check_tokenizer_gradients(model, traits=TRAITS)


@pytest.mark.parametrize("loss", [None, 0.0, 1])
def test_a_loss_may_be_no_tensor(loss):
    adapter = TokenizerAdapter(forward=lambda module, images: (*module(images)[:2], loss))
    testing.check_token_grid(Plain(), traits=TRAITS, adapter=adapter)


def test_more_pixels_in_a_token_than_in_the_image_below_it_are_no_size():
    model = type("Large", (Plain,), {})()
    model.down = nn.Sequential(
        nn.Conv2d(3, 8, 32, 32), nn.InstanceNorm2d(8, track_running_stats=True), nn.Conv2d(8, 4, 1)
    )
    model.up = nn.ConvTranspose2d(4, 3, 32, 32)
    traits = dataclasses.replace(TRAITS, factor=32, image_shape=(3, 32, 64))
    testing.check_token_grid(model, traits=traits)
    testing.check_encode_is_pure(model, traits=traits)


def test_an_encoder_without_a_graph_raises_no_alarm():
    torch.manual_seed(0)
    model = type("TwoStage", (Plain,), {"latents": torch.no_grad()(lambda self, images: self.down(images))})()
    model.down.requires_grad_(False)
    testing.check_tokenizer_gradients(model, traits=TRAITS)


ANSWERS = {
    "dict": lambda self, images, x, codes, loss: {"z": self.down(images), "codes": codes, "vq": loss, "x": x},
    "dict by other names": lambda self, images, x, codes, loss: {
        "x_rec": x,
        "out": {"ids": codes, "perplexity": loss, "loss": loss},
        "loss": loss,
    },
    "pair": lambda self, images, x, codes, loss: (codes, x),
    "list": lambda self, images, x, codes, loss: [loss, x, codes],
}


@pytest.mark.parametrize("form", ANSWERS)
def test_an_answer_is_told_by_shapes_and_types(form):
    def forward(self, images):
        return ANSWERS[form](self, images, *Plain.forward(self, images))

    torch.manual_seed(0)
    model = type("Other", (Plain,), {"forward": forward})()
    failures = {"check_tokenizer_gradients": "no loss"} if form == "pair" else {}
    report = testing.check_tokenizer(model, traits=TRAITS, expected_failures=failures)
    assert "check_token_grid" in report.passed


def test_an_answer_without_images_is_told():
    def forward(self, images):
        reconstructions, indices, loss = Plain.forward(self, images)
        return {"x": reconstructions[:, :1], "codes": indices, "loss": loss}

    with pytest.raises(CheckFailure, match=r"no images of shape \(2, 3, 32, 32\).*\(2, 1, 32, 32\).*TokenizerAdapter"):
        testing.check_tokenizer_call(type("Grey", (Plain,), {"forward": forward})(), traits=TRAITS)


@pytest.mark.parametrize(
    ("adapter", "measured"),
    [
        ({"encode": lambda module, images: module.tokens(images)}, "encode: raised AttributeError"),
        (
            {"forward": lambda module, images: module(images)[0]},
            "forward gives 2 values",
        ),
        ({"forward": lambda module, images: (*module(images)[:2], images)}, r"the loss has shape \(2, 3, 32, 32\)"),
        (
            {"forward": lambda module, images: module(images)[::-1]},
            r"reconstructions: torch\.float32 \(\), not a ten",
        ),
        ({"decode": lambda module, indices: module.up(indices)}, r"decode of indices \(2, 8, 8\): raised"),
    ],
)
def test_an_adapter_that_does_not_fit_is_told(adapter, measured):
    fits = TokenizerAdapter(forward=lambda module, images: module(images))
    with pytest.raises(CheckFailure, match=measured):
        testing.check_tokenizer_call(Plain(), traits=TRAITS, adapter=dataclasses.replace(fits, **adapter))


class WithLayer(Plain):
    """Several pixels of a position from one layer, each with a bias of its own, and what may come behind it."""

    def __init__(self):
        super().__init__()
        self.up = nn.Sequential(nn.Conv2d(4, 16, 1), nn.SiLU(), nn.Conv2d(16, 48, 1), nn.PixelShuffle(4), self.behind())

    def behind(self):
        return nn.Identity()

    @property
    def last_layer(self):
        return self.up[2].weight


@pytest.mark.parametrize("behind", [nn.Identity, nn.Tanh])
def test_a_last_layer_of_many_colors_raises_no_alarm(behind):
    torch.manual_seed(0)
    model = type("Shuffled", (WithLayer,), {"behind": lambda self: behind()})()
    assert "check_last_layer" in testing.check_tokenizer(model, traits=TRAITS).passed


def test_a_layer_that_is_not_the_last_is_seen():
    torch.manual_seed(0)
    model = type("Earlier", (WithLayer,), {"last_layer": property(lambda self: self.up[0].weight)})()
    with pytest.raises(CheckFailure, match="are not affine"):
        testing.check_last_layer(model, traits=TRAITS)
