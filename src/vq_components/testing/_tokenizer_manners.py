"""Checks of a tokenizer's manners: its last layer, dtypes, memory formats, small batches, and what it refuses."""

from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ._compare import clone, gap, state_difference, state_of
from ._report import fail, refused, require
from ._tokenizer import TOKENIZER, TokenizerSubject


def strict(subject: TokenizerSubject) -> bool:
    """Whether it promises more than tokens and images."""
    return subject.traits.strict


def _has_last_layer(subject: TokenizerSubject) -> bool:
    try:
        return isinstance(subject.fresh().last_layer, Tensor)
    except (AttributeError, TypeError):
        return False


@TOKENIZER.check(
    rule="images are affine in last_layer, a parameter of the model, but for a tanh or sigmoid behind it; at zero no "
    "token shows, and if strict an image has one color",
    cause="the weight of an earlier layer, or a copy of the weight",
    applies=lambda subject: _has_last_layer(subject) and not subject.traits.bounded,
)
def check_last_layer(model: TokenizerSubject) -> None:
    """Guards the adaptive weight of the adversarial loss, which is measured at the decoder's last weight.

    Fails it::

        return self.decoder.conv_in.weight
    """
    module, images = model.started(training=True), model.images(2)
    layer = module.last_layer
    require(any(layer is parameter for parameter in module.parameters()), "last_layer is no parameter of the model")
    reconstructions, indices, _ = model.adapter.forward(module, images)
    (gradient,) = torch.autograd.grad(reconstructions.square().mean(), layer, allow_unused=True)
    require(gradient is not None and bool(gradient.any()), "images have no gradient at last_layer")
    module.eval()
    start = layer.detach().clone()
    step = start.std() * torch.randn_like(layer)
    with torch.no_grad():
        made = []
        for weight in (torch.zeros_like(start), start, step, 0.5 * start - 2 * step):
            layer.copy_(weight)
            made.append(model.adapter.decode(module, indices))
    blank, first, second, mixed = made
    # Layers that make several pixels of a position may have a color for each.
    colors = (blank - (blank[:1, :, :1, :1] if model.traits.strict else blank[:1])).abs().max()
    require(
        float(colors) <= 1e-5 * float(1 + blank.abs().max()), f"at zero, pixels are up to {float(colors):.3g} apart"
    )
    require(bool((first - blank).any()), "images do not depend on last_layer")
    found = _bend(blank, first, second, mixed)
    low, high = model.traits.low, model.traits.high
    if not model.traits.strict and all(bool(((each > low) & (each < high)).all()) for each in made):
        found = min(found, _bend(*(((each - low) / (high - low)).double().logit() for each in made)))
    require(found <= 1e-4, f"images are not affine in it: {found:.3g}")


def _bend(blank: Tensor, first: Tensor, second: Tensor, mixed: Tensor) -> float:
    """How far images of weights 0, ``a``, ``b`` and ``a / 2 - 2 b`` are from affine, as a share of their size."""
    error = (mixed - blank) - 0.5 * (first - blank) + 2 * (second - blank)
    return float(error.abs().max() / ((first - blank).abs().max() + (second - blank).abs().max()))


@TOKENIZER.check(
    rule="a model of another dtype takes images of it and gives such images, and the round trip is exact",
    cause="entries in float32 before a convolution in half precision",
    applies=strict,
)
def check_tokenizer_dtypes(model: TokenizerSubject) -> None:
    """Guards half precision without autocast, double precision, and networks around a codebook in float32.

    Fails it::

        return self.decoder(self.post_quant_conv(self.quantize.decode(indices)))  # float32, into bfloat16
    """
    images, source = model.images(3), model.started()
    expected = model.adapter.encode(source, images)
    for dtype in (torch.float64, torch.bfloat16):
        for whole in (True, False):
            module = clone(source)
            codebook = [each for name, each in module.named_children() if name == "quantize"]
            for part in [module] if whole else [each for each in module.children() if each not in codebook]:
                part.to(dtype)
            where = f"{dtype}, {'whole model' if whole else 'networks alone'}"
            with torch.no_grad():
                reconstructions, indices, loss = model.adapter.forward(module, images.to(dtype))
                encoded = model.adapter.encode(module, images.to(dtype))
                decoded = model.adapter.decode(module, encoded)
            for name, each in (("reconstructions", reconstructions), ("decoded images", decoded)):
                require(each.dtype == dtype, f"{where}: {name} are {each.dtype}")
            require(bool(loss.isfinite().all()), f"{where}: the loss is {loss.tolist()}")
            wide = torch.promote_types(loss.dtype, torch.float32)
            require(loss.dtype == wide, f"{where}: the loss is {loss.dtype}, which has few digits for a sum")
            require(not gap(encoded, indices), f"{where}, encode and forward: {gap(encoded, indices)}")
            text = model.differ(decoded, reconstructions)
            require(not text, f"{where}, decoded images: {text}")
            share = float((encoded == expected).double().mean())
            require(
                share > (0.98 if dtype == torch.float64 else 0.5), f"{where}: {100 * share:.0f} % of float32's tokens"
            )


@TOKENIZER.check(
    rule="the memory format changes no token, and decoding is bit-equal to the forward in every format",
    cause="a view of strides, or a convolution that rounds differently for images in channels_last",
    applies=strict,
)
def check_memory_formats(model: TokenizerSubject) -> None:
    """Guards models and images in channels_last, which are faster on some devices.

    Fails it::

        return self.decoder(self.post_quant_conv(quantized))  # of forward's images' format, unlike decode's
    """
    images, source = model.images(3), model.started()
    expected, tokens, _ = model.adapter.forward(source, images)
    for model_format in (torch.contiguous_format, torch.channels_last):
        for image_format in (torch.contiguous_format, torch.channels_last):
            for autocast in (False, True):
                where = f"model {model_format}, images {image_format}" + autocast * ", autocast"
                module = clone(source).to(memory_format=model_format)
                each = images.contiguous(memory_format=image_format)
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    reconstructions, indices, _ = model.adapter.forward(module, each)
                    encoded = model.adapter.encode(module, each)
                    decoded = model.adapter.decode(module, encoded)
                text = gap(encoded, indices) or model.differ(decoded, reconstructions)
                require(not text, f"{where}: decode(encode(images)): {text}")
                if not autocast:
                    text = gap(indices, tokens) or model.about(reconstructions, expected)
                    require(not text, f"{where}: {text}")


@TOKENIZER.check(
    rule="a batch of one gives what the same image gives among others; an empty batch gives empty results and no NaN",
    cause="squeeze(), or a mean over nothing",
    applies=strict,
)
def check_small_batches(model: TokenizerSubject) -> None:
    """Guards the last batch of a data set.

    Fails it::

        return indices.squeeze()
    """
    for training in (False, True):
        module = model.started(training=training)
        for batch in (1, 0):
            images = model.images(3)[:batch]
            reconstructions, indices, loss = model.adapter.forward(module, images)
            encoded = model.adapter.encode(module, images)
            decoded = model.adapter.decode(module, encoded)
            grid = tuple(side // model.traits.factor for side in images.shape[2:])
            for name, each, shape in (
                ("reconstructions", reconstructions, images.shape),
                ("decoded images", decoded, images.shape),
                ("indices", indices, (batch, *grid, *model.traits.index_shape)),
                ("encoded", encoded, (batch, *grid, *model.traits.index_shape)),
            ):
                require(tuple(each.shape) == tuple(shape), f"batch of {batch}: {name} have shape {tuple(each.shape)}")
            require(bool(loss.isfinite().all()), f"batch of {batch}: the loss is {loss.tolist()}")


@TOKENIZER.check(
    rule="what cannot be right is refused in words that name it: a shape by a ValueError, a type by a TypeError",
    cause="an error from inside of a convolution, images that are cut, or 8-bit images taken for ones in [-1, 1]",
    applies=strict,
)
def check_tokenizer_refuses(model: TokenizerSubject) -> None:
    """Guards every way in: images of wrong shapes and types, tokens that do not exist.

    Fails it::

        images = images[:, :, : height // stride * stride]
    """
    module, images, factor = model.started(), model.images(2), model.traits.factor
    _, height, width = model.traits.image_shape
    shapes = {
        "one image": images[0],
        "five dimensions": images[:, :, None],
        "a channel too many": torch.cat([images, images[:, :1]], dim=1),
        "a channel too few": images[:, 1:],
        "channels last": images.permute(0, 2, 3, 1).repeat(1, 1, 1, 2),
        "a height of 0": images[:, :, :0],
        "a width of 0": images[..., :0],
    }
    if factor > 1:
        shapes["a height that does not fit"] = images[:, :, : height - factor + 1]
        shapes["a width that does not fit"] = images[..., : width - 1]
    types = {"8-bit images": ((images + 1) * 127).to(torch.uint8), "int64 images": images.long()}
    names = ("forward", "encode", "features")
    ways = {name: getattr(module, name) for name in names if callable(getattr(module, name, None))}
    if isinstance(getattr(module, "encoder", None), nn.Module):
        ways["encoder"] = module.encoder
    for way, call in ways.items():
        for name, bad in shapes.items():
            _says(f"{way} of {name}", partial(call, bad), ValueError, str(tuple(bad.shape)), f"{bad.shape[-2:][0]} x")
        for name, bad in types.items():
            _says(f"{way} of {name}", partial(call, bad), TypeError, str(bad.dtype))
        _says(f"{way} of a list", partial(call, images.tolist()), TypeError, "list")
    tokens = model.adapter.encode(module, images)
    for name, bad in (
        ("a token beyond the last", tokens + model.traits.codebook_size),
        ("a negative token", tokens - model.traits.codebook_size - 1),
        ("floating-point tokens", tokens.float()),
    ):
        require(refused(partial(model.adapter.decode, module, bad), ValueError, TypeError), f"decode takes {name}")
    _check_decoder_refuses(module)


def _check_decoder_refuses(module: Any) -> None:
    decoder = getattr(module, "decoder", None)
    channels = getattr(decoder, "z_channels", None)
    if decoder is None or channels is None:
        return
    for shape in ((channels, 4, 4), (1, channels + 1, 4, 4), (1, 4, 4, channels), (1, channels, 4)):
        if shape[1:2] != (channels,) or len(shape) != 4:
            _says(f"the decoder of {shape}", partial(decoder, torch.zeros(shape)), ValueError, str(shape))


def _says(name: str, call: partial[Any], kind: type[Exception], *words: str) -> None:
    """Ends the check unless a call raises an error of this kind, with one of the words."""
    try:
        call()
    except (ValueError, TypeError) as error:
        require(isinstance(error, kind), f"{name} raises {type(error).__name__}: {error}")
        require(any(word in str(error) for word in words), f"{name}: the error does not say {words[0]}: {error}")
        return
    fail(f"{name} is taken")


def _takes_mask(subject: TokenizerSubject) -> bool:
    module = subject.fresh()
    return subject.traits.strict and hasattr(module, "quantize") and "mask" in signature(module.forward).parameters


@TOKENIZER.check(
    rule="a mask of positions is the quantizer's: all is as if it were called with it",
    cause="a mask that forward or encode takes and forgets",
    applies=_takes_mask,
)
def check_model_mask(model: TokenizerSubject) -> None:
    """Guards images that were padded: what does not exist enters neither loss nor statistics.

    Fails it::

        def forward(self, images, mask=None):
            return self.decoder(self.quantize(self.encoder(images)))
    """
    for training in (False, True):
        module, images = model.started(training=training), model.images(3)
        indices = model.adapter.encode(module, images)
        mask = torch.rand(indices.shape[:3]) > 0.4
        text = gap(module.encode(images, mask)[~mask], torch.full_like(indices[~mask], -1))
        require(not text, f"indices of encode where masked: {text}")
        twin = clone(module)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            expected = twin.quantize(twin.features(images), mask)
        with torch.no_grad():
            result = module(images, mask)
        for name in ("indices", "loss"):
            text = gap(getattr(result, name), getattr(expected, name))
            require(not text, f"{'training' if training else 'evaluation'}, {name}: {text}")
        text = state_difference(state_of(module), state_of(twin))
        require(not text, f"{'training' if training else 'evaluation'}, state: {text}")
