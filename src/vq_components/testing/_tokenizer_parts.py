"""Checks of a tokenizer that is made of an encoder, a quantizer, a decoder and a convolution on either side."""

import inspect
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._compare import backward, clone, gap, state_difference, state_of
from ._memory import kept_by_autograd
from ._report import fail, refused, require
from ._tokenizer import TOKENIZER, TokenizerSubject

PARTS = ("encoder", "quant_conv", "quantize", "post_quant_conv", "decoder")


def has_parts(subject: TokenizerSubject) -> bool:
    """Whether it is strict, and made of parts with the published names."""
    module = subject.fresh()
    return subject.traits.strict and all(isinstance(getattr(module, name, None), nn.Module) for name in PARTS)


@TOKENIZER.check(
    rule="forward is the parts one after another, each once, and returns the quantizer's indices, loss and terms",
    cause="a part that is called twice, so that it counts twice, or a loss that is changed on its way",
    applies=has_parts,
)
def check_forward_is_its_parts(model: TokenizerSubject) -> None:
    """Guards the model against doing more than its parts, in training and in evaluation.

    Fails it::

        return Output(images, indices, loss.detach(), terms)
    """
    for training in (True, False):
        module, images = model.started(training=training), model.images(3)
        twin = clone(module)
        torch.manual_seed(1)
        result = module(images)
        torch.manual_seed(1)
        latents = twin.quant_conv(twin.encoder(images))
        expected = twin.quantize(latents)
        reconstructions = twin.decoder(twin.post_quant_conv(expected[0]))
        mode = "training" if training else "evaluation"
        require(len(result) == len(expected), f"{mode}: {len(result)} results, of the quantizer {len(expected)}")
        fields = [getattr(type(each), "_fields", ("",))[1:] for each in (result, expected)]
        require(fields[0] == fields[1], f"{mode}: after the first, results are {fields[0]} instead of {fields[1]}")
        for name, found, right in (
            ("reconstructions", result[0], reconstructions),
            ("indices", result[1], expected[1]),
            ("loss", result[2], expected[2]),
        ):
            require(not gap(found, right), f"{name}, {mode}: {gap(found, right)}")
            require(found.dtype == right.dtype, f"{name}, {mode}: {found.dtype} instead of {right.dtype}")
        text = state_difference(state_of(module), state_of(twin))
        require(not text, f"{mode}, state: {text}")
        _check_terms(result, expected, mode)
        _check_equal_gradients(module, twin, images, (result, (reconstructions, *expected[1:])), mode)


def _check_terms(result: Any, expected: Any, mode: str) -> None:
    """The results after the first three, which are dictionaries of scalars here."""
    for found, right in zip(result[3:], expected[3:], strict=True):
        require(found.keys() == right.keys(), f"terms, {mode}: {sorted(found)} instead of {sorted(right)}")
        for name in found:
            require(not gap(found[name], right[name]), f"{name}, {mode}: {gap(found[name], right[name])}")
            require(not found[name].requires_grad, f"{name}, {mode}: not detached")


def _check_equal_gradients(module: Any, twin: Any, images: Tensor, results: tuple[Any, Any], mode: str) -> None:
    for result in results:
        backward((result[0] - images).square().mean() + result[2].sum())
    for (name, found), right in zip(module.named_parameters(), twin.parameters(), strict=True):
        require((found.grad is None) == (right.grad is None), f"gradient of {name}, {mode}: only one of two exists")
        text = "" if found.grad is None else gap(found.grad, right.grad)
        require(not text, f"gradient of {name}, {mode}: {text}")


@TOKENIZER.check(
    rule="encode runs the encoder's half alone, decode the decoder's, each part once; encode keeps nothing for a "
    "backward, and decode trains the decoder and learned entries",
    cause="encode that calls forward, or decode under no_grad",
    applies=has_parts,
)
def check_halves(model: TokenizerSubject) -> None:
    """Guards the time and memory of either half.

    Fails it::

        def encode(self, images):
            return self(images).indices
    """
    for training in (True, False):
        module, images = model.started(training=training), model.images(2)
        calls = _note_calls(module)
        with kept_by_autograd() as kept:
            indices = model.adapter.encode(module, images)
        require(not kept, f"encode keeps {len(kept)} tensors for a backward")
        require(torch.is_grad_enabled(), "encode leaves autograd off")
        ran = [name for name in calls if name != "quantize"]
        require(ran == ["encoder", "quant_conv"], f"encode runs {', '.join(ran)}")
        calls.clear()
        decoded = model.adapter.decode(module, indices)
        ran = [name for name in calls if name != "quantize"]
        require(ran == ["post_quant_conv", "decoder"], f"decode runs {', '.join(ran)}")
        module.zero_grad()
        backward(decoded.square().mean())
        idle = [name for name, p in module.decoder.named_parameters() if p.grad is None]
        require(not idle, f"decode gives no gradient at {', '.join(idle[:3])}")
        require(module.post_quant_conv.weight.grad is not None, "decode gives no gradient at post_quant_conv")
        if module.quantize.decode(indices).requires_grad:
            entries = any(p.grad is not None for p in module.quantize.parameters())
            require(entries, "decode gives no gradient at the entries, quantize.decode does")


def _note_calls(module: nn.Module) -> list[str]:
    """Names of the parts that run from now on."""
    calls: list[str] = []
    for name in PARTS:
        module.get_submodule(name).register_forward_pre_hook(lambda part, args, name=name: calls.append(name))
    return calls


@TOKENIZER.check(
    rule="the model's update_after(optimizer) is its quantizer's: an update after each step, until it is removed",
    cause="a method that the model has, but does not hand on",
    applies=lambda subject: has_parts(subject) and hasattr(subject.fresh(), "update_after"),
)
def check_tokenizer_update_after(model: TokenizerSubject) -> None:
    """Guards a codebook inside of a model whose training loop calls no update.

    Fails it::

        def update_after(self, optimizer):
            return self.quantize.update_after  # without the call
    """
    source = model.fresh()
    states: list[list[dict[str, Tensor]]] = []
    images = [model.images(3) for _ in range(3)]
    for owner in ("model", "quantizer"):
        module = clone(source)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
        torch.manual_seed(1)
        handle = (module if owner == "model" else module.quantize).update_after(optimizer)
        states.append([])
        for number, batch in enumerate(images):
            model.adapter.forward(module, batch)
            optimizer.step()
            states[-1].append(state_of(module))
            if number == 1:
                handle.remove()
    for number, (found, right) in enumerate(zip(*states, strict=True)):
        text = state_difference(found, right)
        require(not text, f"step {number + 1}, compared with quantize.update_after: {text}")


def _assembles(subject: TokenizerSubject) -> bool:
    names = list(inspect.signature(type(subject.fresh())).parameters)
    return has_parts(subject) and names == ["encoder", "quantizer", "decoder", "z_channels"]


class _Silent(nn.Module):
    """A network that does not tell its channels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)
        return y


@TOKENIZER.check(
    rule="the parts' own channels size the convolutions between them, and parts that do not fit are refused",
    cause="a width of one part that is taken for another's, or an error that comes with the first batch only",
    applies=_assembles,
)
def check_assembly(model: TokenizerSubject) -> None:
    """Guards a model that somebody puts together of other parts.

    Fails it::

        self.post_quant_conv = nn.Conv2d(quantizer.dim, z_channels, 1)  # must be quantizer.dim_out
    """
    module = model.fresh()
    make: Callable[..., Any] = type(module)
    encoder, decoder = module.encoder, module.decoder
    wide = _with(decoder, z_channels=decoder.z_channels + 3)
    built = make(encoder, _with(module.quantize, dim_out=7), wide)
    shapes = [tuple(getattr(built, name).weight.shape) for name in ("quant_conv", "post_quant_conv")]
    expected = [(module.quantize.dim, encoder.z_channels, 1, 1), (wide.z_channels, 7, 1, 1)]
    require(shapes == expected, f"convolutions of shapes {shapes} instead of {expected}")
    require(all(part.training for part in built.modules()), "parts in training mode are not in it any more")
    silent = make(_Silent(encoder), module.quantize, _Silent(decoder), z_channels=encoder.z_channels)
    require(silent.quant_conv.in_channels == encoder.z_channels, "z_channels does not size quant_conv")
    require(silent.post_quant_conv.out_channels == encoder.z_channels, "z_channels does not size post_quant_conv")
    require(refused(lambda: silent.last_layer, TypeError), "last_layer of a decoder without one is no TypeError")
    _check_door(model, make(nn.Conv2d(3, 6, 2, 2), module.quantize, nn.ConvTranspose2d(6, 3, 2, 2), z_channels=6))
    make(encoder, module.quantize, decoder, z_channels=encoder.z_channels)
    make(encoder, _with(module.quantize, channel_dim=-3), decoder)
    odd, other = encoder.z_channels + 1, partial(_with, module.quantize)
    for name, words, call in (
        ("an encoder that does not tell its channels", "encoder", partial(make, _Silent(encoder), other(), decoder)),
        ("a decoder that does not tell its channels", "decoder", partial(make, encoder, other(), _Silent(decoder))),
        ("z_channels that are not the networks'", str(odd), partial(make, encoder, other(), decoder, z_channels=odd)),
        ("a decoder with other z_channels", "decoder", partial(make, encoder, other(), wide, z_channels=odd - 1)),
        ("channels at the end", "channel_dim=-1", partial(make, encoder, other(channel_dim=-1), decoder)),
        ("channels along the height", "channel_dim=2", partial(make, encoder, other(channel_dim=2), decoder)),
        ("no quantizer", "Identity", partial(make, encoder, nn.Identity(), decoder)),
        ("a class", type(module.quantize).__name__, partial(make, encoder, type(module.quantize), decoder)),
    ):
        kind = TypeError if name in ("no quantizer", "a class") else ValueError
        try:
            call()
        except kind as error:
            require(words in str(error), f"{name}: the error does not say {words}: {error}")
        else:
            fail(f"{name} is taken")


def _check_door(model: TokenizerSubject, small: Any) -> None:
    """A model checks images itself: a convolution as its encoder takes unbatched ones, for example."""
    images = torch.rand(2, 3, 8, 8)
    for way in (small, small.encode, getattr(small, "features", small)):
        require(refused(partial(way, images[0]), ValueError), "an image without a batch is taken, of another encoder")
        require(refused(partial(way, images.byte()), TypeError), "8-bit images are no TypeError, of another encoder")
    require(
        model.adapter.encode(small.eval(), images).shape[:3] == (2, 4, 4), "images of another encoder are not taken"
    )


def _with(part: Any, **attributes: int) -> Any:
    """A copy that says something else of itself."""
    twin = clone(part)
    for name, value in attributes.items():
        setattr(twin, name, value)
    return twin


class _Way(nn.Module):
    """One way through a model, as a module."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Tensor) -> Any:
        return getattr(self.model, self.name)(x)


def _export(way: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    """An exported program as it comes back from a file."""
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(way, (x,)), buffer)
    buffer.seek(0)
    program: Callable[[Tensor], Any] = torch.export.load(buffer).module()
    return program


@TOKENIZER.check(
    rule="forward, encode, decode and the quantizer can each be exported to a file, and give the same when loaded",
    cause="a branch on a value of a tensor, two nested no_grad, or a result type that files do not know",
    applies=_assembles,
)
def check_tokenizer_export(model: TokenizerSubject) -> None:
    """Guards deployment: what the model adds to its parts, which are the smallest here.

    Fails it::

        if indices.max() >= self.codebook_size:
            raise ValueError
    """
    source, images = model.started(), model.images(2)
    channels, factor = images.shape[1], model.traits.factor
    encoder, decoder = nn.Conv2d(channels, 6, factor, factor), nn.ConvTranspose2d(6, channels, factor, factor)
    module = type(source)(encoder, source.quantize, decoder, z_channels=6).eval()
    torch.compiler.reset()
    indices, latents = module.encode(images), module.quant_conv(module.encoder(images)).detach()
    for name, x in (("forward", images), ("encode", images), ("decode", indices), ("quantize", latents)):
        way = _Way(module, name)
        found, expected = _export(way, x)(x), way(x)
        require(type(found) is type(expected), f"{name}: {type(found).__name__} is not {type(expected).__name__}")
        results = ((found, expected),) if isinstance(found, Tensor) else zip(found[:3], expected[:3], strict=True)
        for actual, right in results:
            text = model.about(actual, right)
            require(not text, f"{name}: {text}")
    torch.compiler.reset()
