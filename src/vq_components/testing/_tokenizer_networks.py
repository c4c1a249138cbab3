"""Checks of an encoder and a decoder that have the published entries."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ._compare import differ
from ._report import require
from ._tokenizer import TOKENIZER, TokenizerSubject
from ._tokenizer_reference import Reference, is_published, published_groups

PARTS = {"encoder": "down", "decoder": "up"}
# Float64 sums of another order, some thirty layers deep, of values around 1 to 100.
TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def published(subject: TokenizerSubject) -> bool:
    """Whether encoder and decoder have the published entries and give what these compute."""
    module = subject.fresh()
    parts = {part: getattr(module, part, None) for part in PARTS}
    return not subject.traits.bounded and all(
        isinstance(network, nn.Module) and is_published(network.state_dict(), PARTS[part])
        for part, network in parts.items()
    )


def excite_(network: nn.Module) -> nn.Module:
    """Moves all parameters from their start, where norms are identities and attention is an average; in float64."""
    network.double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            size = parameter.square().mean().sqrt().clamp(min=0.1)
            parameter.add_(0.5 * size * torch.randn_like(parameter))
            if name.endswith((".q.weight", ".k.weight")):
                parameter.mul_(3)
    return network


def groups_of(subject: TokenizerSubject, network: Any) -> Callable[[int], int]:
    """Groups of a normalization: the published ones; where 32 does not divide, a network's own unless strict."""
    if subject.traits.strict:
        return published_groups
    norms = [part for part in network.modules() if isinstance(part, nn.GroupNorm)]
    own = {norm.num_channels: norm.num_groups for norm in norms if norm.num_channels % 32 != 0}
    return lambda channels: own.get(channels, 32)


def reference_of(subject: TokenizerSubject, network: nn.Module, *, dropped: bool = False) -> Reference:
    """The slow network of a network's own entries."""
    return Reference(dict(network.state_dict(keep_vars=True)), groups_of(subject, network), dropped)


def drop_(network: nn.Module, share: float) -> int:
    """Lets every dropout drop another share; how many there are."""
    dropouts = [part for part in network.modules() if isinstance(part, nn.Dropout)]
    for part in dropouts:
        part.p = share
    return len(dropouts)


def pairs(
    subject: TokenizerSubject, module: Any, *, dropped: bool = False
) -> list[tuple[str, nn.Module, Callable[[Tensor], Tensor], Tensor]]:
    """Each network of a model, excited, with its reference and an input that is not square."""
    _, height, width = subject.traits.image_shape
    wide = width + subject.traits.factor if subject.traits.any_size else width
    images = subject.images(2, (height, wide)).double()
    encoder, decoder = excite_(module.encoder), excite_(module.decoder)
    grid = (height // subject.traits.factor, wide // subject.traits.factor)
    latent_channels = decoder.state_dict()["conv_in.weight"].shape[1]
    latents = torch.randn(2, latent_channels, *grid, dtype=torch.float64)
    return [
        ("encoder", encoder, reference_of(subject, encoder, dropped=dropped).encode, images),
        ("decoder", decoder, reference_of(subject, decoder, dropped=dropped).decode, latents),
    ]


@TOKENIZER.check(
    rule="encoder and decoder compute what the published entries say: group norms of 32 groups and eps 1e-6, swish, "
    "padding at the right and the bottom before a stride of 2, nearest upsampling, attention scaled by 1 / sqrt(C)",
    cause="padding on both sides, a scale that is left out, levels in another order, or torch's usual eps of 1e-5",
    applies=published,
)
def check_autoencoder_values(model: TokenizerSubject) -> None:
    """Guards checkpoints: the networks by slow ones in float64, in both modes.

    Fails it::

        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)  # must pad (0, 1, 0, 1)
    """
    module = model.fresh()
    for training in (False, True):
        for part, network, slow, x in pairs(model, module.train(training)):
            drop_(network, 0.0)
            with torch.no_grad():
                text = differ(network(x), slow(x), **TIGHT)
            require(not text, f"{part}, {'training' if training else 'evaluation'}: {text}")
    for part, network, slow, x in pairs(model, module.train(), dropped=True):
        if drop_(network, 1.0):
            with torch.no_grad():
                text = differ(network(x), slow(x), **TIGHT)
                require(not text, f"{part}, with all dropped that dropout can drop: {text}")
                drop_(network, 0.0)


@TOKENIZER.check(
    rule="gradients of encoder and decoder are those of the published formulas, at the input and at every parameter",
    cause="a detach, an operation in place, or blocks that are computed again in the backward and give something else",
    applies=published,
)
def check_autoencoder_gradients(model: TokenizerSubject) -> None:
    """Guards training: the slow networks' gradients by autograd, in float64.

    Fails it::

        return self.nin_shortcut(x).detach() + h
    """
    for part, network, slow, x in pairs(model, model.fresh()):
        drop_(network, 0.0)
        x.requires_grad_()
        names, parameters = zip(*network.named_parameters(), strict=True)
        weight = torch.randn_like(slow(x))
        found = torch.autograd.grad((weight * network(x)).sum(), (x, *parameters), allow_unused=True)
        expected = torch.autograd.grad((weight * slow(x)).sum(), (x, *parameters))
        for name, actual, right in zip(("the input", *names), found, expected, strict=True):
            require(actual is not None, f"{part}: no gradient at {name}")
            # Keys' biases have none: softmax does not see what all scores have in common.
            text = differ(actual, right, rtol=1e-6, atol=1e-8 * float(1 + right.abs().max()))
            require(not text, f"{part}, gradient at {name}: {text}")


def _has_middle(subject: TokenizerSubject) -> bool:
    """Whether there is a quantizer, which encodes and decodes, between two convolutions."""
    module = subject.fresh()
    convolutions = [getattr(module, name, None) for name in ("quant_conv", "post_quant_conv")]
    methods = [getattr(getattr(module, "quantize", None), name, None) for name in ("encode", "decode")]
    return all(isinstance(each, nn.Conv2d) for each in convolutions) and all(callable(each) for each in methods)


@TOKENIZER.check(
    rule="the quantizer gets quant_conv(encoder(images)), and images are decoder(post_quant_conv(entries))",
    cause="a convolution that is left out or used twice, in one of the ways through the model",
    applies=lambda subject: published(subject) and _has_middle(subject),
)
def check_model_values(model: TokenizerSubject) -> None:
    """Guards the way of images through the model by slow networks in float64: forward, encode and decode.

    Fails it::

        return self.quantize.encode(self.encoder(images))  # without quant_conv
    """
    for training in (False, True):
        module = model.started().double().train(training)
        (_, encoder, encode, images), (_, decoder, decode, _) = pairs(model, module)
        for network in (encoder, decoder, module.quant_conv, module.post_quant_conv):
            drop_(network, 0.0)
        excite_(module.post_quant_conv)
        mode = "training" if training else "evaluation"
        with torch.no_grad():
            latents = _mix(encode(images), module.quant_conv)
            if hasattr(module, "features"):
                text = differ(module.features(images), latents, **TIGHT)
                require(not text, f"features, {mode}: {text}")
            indices = module.quantize.encode(latents)
            encoded = model.adapter.encode(module, images)
            share = float((encoded != indices).double().mean())
            require(share < 0.01, f"encode, {mode}: {100 * share:.0f} % of the tokens differ")
            decoded = model.adapter.decode(module, indices)
            expected = decode(_mix(module.quantize.decode(indices), module.post_quant_conv))
            text = differ(decoded, expected, **TIGHT)
            require(not text, f"decode, {mode}: {text}")


def _mix(x: Tensor, layer: nn.Conv2d) -> Tensor:
    mixed = torch.einsum("oc,bchw->bohw", layer.weight.detach()[:, :, 0, 0], x.to(layer.weight))
    return mixed if layer.bias is None else mixed + layer.bias.detach()[:, None, None]
