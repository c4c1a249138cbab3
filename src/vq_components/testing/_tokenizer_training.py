"""Checks of a tokenizer's training: where gradients come from, and that the error falls."""

import torch
from torch import Tensor, nn

from ._compare import backward
from ._report import fail, require
from ._tokenizer import TOKENIZER, TokenizerSubject


@TOKENIZER.check(
    rule="every parameter gets a finite gradient from reconstruction and loss, and the encoder one from either",
    cause="no straight-through estimator, a layer that is never called, or a detach too many",
)
def check_tokenizer_gradients(model: TokenizerSubject) -> None:
    """Guards encoder, quantizer and decoder.

    Fails it::

        z = self.encoder(images).detach()

    and::

        reconstructions = self.decoder(self.codebook[indices])  # the encoder learns from the commitment alone
    """
    _check_reconstruction_reaches_encoder(model)
    module = model.started(training=True)
    for _ in range(4):  # some models leave out layers at random
        images = model.images(4)
        reconstructions, _, loss = model.adapter.forward(module, images)
        backward((reconstructions - images).square().mean() + loss.reshape(()))
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    idle = [name for name, p in named if p.grad is None or not bool(p.grad.any())]
    require(not idle, f"no gradient at {', '.join(idle[:6])}")
    bad = [name for name, p in named if p.grad is not None and not bool(p.grad.isfinite().all())]
    require(not bad, f"a gradient that is not finite at {', '.join(bad[:6])}")


def _check_reconstruction_reaches_encoder(model: TokenizerSubject) -> None:
    """Where the quantizer's loss pulls at the images' features, so must the reconstruction."""
    module = model.started(training=True)
    images = model.images(4).requires_grad_()
    reconstructions, _, loss = model.adapter.forward(module, images)
    error = (reconstructions - images.detach()).square().mean()
    pulls = []
    for part in (loss.reshape(()), error):
        grad = (
            torch.autograd.grad(part, images, retain_graph=True, allow_unused=True)[0] if part.requires_grad else None
        )
        pulls.append(grad is not None and bool(grad.any()))
    require(
        pulls != [True, False], "the quantizer's loss has a gradient at the images, and the reconstruction has none"
    )


@TOKENIZER.check(
    rule="training on a few images brings their error down",
    cause="a gradient that does not reach the encoder, or a codebook that is never moved",
)
def check_tokenizer_training(model: TokenizerSubject) -> None:
    """Guards the whole, in some steps on a batch of smooth images, with one of three learning rates.

    Fails it::

        loss = commitment  # and the codebook stays where it was
    """
    share = 0.5 if model.traits.strict else 0.75
    channels, height, width = model.traits.image_shape
    unit = nn.functional.interpolate(torch.rand(4, channels, 2, 2), size=(height, width), mode="bilinear")
    images = model.traits.low + (model.traits.high - model.traits.low) * unit
    numbers = []
    for rate in (2e-3, 1e-2, 3e-4):  # a small plain model wants larger steps, a deep one smaller ones
        first, last = _train(model, images, rate=rate, share=share)
        if last < share * first:
            return
        numbers.append(f"from {first:.4g} to {last:.4g} at a rate of {rate}")
    fail(f"the squared error goes {', '.join(numbers)}")


def _train(model: TokenizerSubject, images: Tensor, *, rate: float, share: float) -> tuple[float, float]:
    """The squared error of the first step, and its mean over the last five, of 100 or as many as bring it down."""
    module = model.fresh()
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=rate)
    errors: list[float] = []
    for _ in range(100):
        reconstructions, _, loss = model.adapter.forward(module, images)
        error = (reconstructions - images).square().mean()
        optimizer.zero_grad()
        backward(error + loss.reshape(()))
        optimizer.step()
        if hasattr(module, "update_"):
            module.update_()
        errors.append(float(error.detach()))
        if len(errors) >= 10 and sum(errors[-5:]) / 5 < share * errors[0]:
            break
    return errors[0], sum(errors[-5:]) / 5
