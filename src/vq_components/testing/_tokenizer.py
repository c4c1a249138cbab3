"""A tokenizer under test, and its checks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._answers import AnswerReader
from ._compare import as_loss_tensor, clone, differ, gap
from ._engine import Kind


@dataclass(frozen=True, kw_only=True)
class TokenizerTraits:
    """What is true of an image tokenizer by design.

    Args:
        image_shape: channels, height and width of images that it takes.
        factor: pixels along each side of one token.
        codebook_size: number of tokens.
        low: smallest value of its images.
        high: largest value of its images.
        bounded: whether its decoder promises images in that range.
        index_shape: what one position's tokens add to the grid's shape.
        any_size: whether it takes any size that ``factor`` divides.
        half: whether it runs under autocast.
        local: whether its tokens are a grid of which each stands mostly for its own ``factor x factor`` pixels, as in
            convolutional networks.
        strict: in evaluation, decoding the encoded images is bit-equal to the forward.
        rtol: relative tolerance, where not strict.
        atol: absolute tolerance, likewise.
    """

    image_shape: tuple[int, int, int] = (3, 32, 32)
    factor: int
    codebook_size: int
    low: float = -1.0
    high: float = 1.0
    bounded: bool = False
    index_shape: tuple[int, ...] = ()
    any_size: bool = True
    half: bool = True
    local: bool = False
    strict: bool = False
    rtol: float = 1e-3
    atol: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class TokenizerAdapter:
    """Functions that say how a tokenizer is used.

    Args:
        forward: ``(module, images) -> (reconstructions, indices, loss)``; a loss of None is 0.
        encode: ``(module, images) -> indices``.
        decode: ``(module, indices) -> images``.
    """

    forward: Callable[[Any, Tensor], tuple[Any, ...]]
    encode: Callable[[Any, Tensor], Tensor] = lambda module, images: module.encode(images)
    decode: Callable[[Any, Tensor], Tensor] = lambda module, indices: module.decode(indices)


def _forward(reader: AnswerReader, module: Any, images: Tensor) -> tuple[Any, ...]:
    """In the usual order, or found by names, shapes and types: images, integers, and one number."""
    answer = module(images)
    if isinstance(answer, tuple) and len(answer) >= 3:
        return tuple(answer[:3])
    return reader.read(answer, images, lambda t: t.shape == images.shape)


def _usual_adapter() -> TokenizerAdapter:
    reader = AnswerReader(
        what="images of shape",
        remedy="pass TokenizerAdapter(forward=...) that gives (reconstructions, indices, loss)",
    )
    return TokenizerAdapter(forward=partial(_forward, reader))


def _with_tensor(forward: Callable[[Any, Tensor], tuple[Any, ...]], module: Any, images: Tensor) -> tuple[Any, ...]:
    """Its answer, with the loss as a tensor."""
    answer = tuple(forward(module, images))
    if len(answer) == 3:
        return (*answer[:2], as_loss_tensor(answer[2]))
    return answer


def _diffusers_indices(module: Any, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    quantized, loss, (_, _, indices) = module.quantize(latents)
    return quantized, indices.view(len(latents), *latents.shape[2:]), loss


def _diffusers_forward(module: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    latents = module.encode(images).latents
    quantized, indices, loss = _diffusers_indices(module, latents)
    return module.decode(quantized, force_not_quantize=True).sample, indices, loss


def _diffusers_decode(module: Any, indices: Tensor) -> Tensor:
    shape = (*indices.shape, module.quantize.vq_embed_dim)
    quantized = module.quantize.get_codebook_entry(indices.flatten(), shape)
    images: Tensor = module.decode(quantized, force_not_quantize=True).sample
    return images


diffusers_tokenizer = TokenizerAdapter(
    forward=_diffusers_forward,
    encode=lambda module, images: _diffusers_indices(module, module.encode(images).latents)[1],
    decode=_diffusers_decode,
)
"""For the ``VQModel`` of diffusers, whose ``encode`` returns what its ``decode`` quantizes."""


class TokenizerSubject:
    """A tokenizer, how to use it, and what it declares.

    Args:
        model: the module, which is copied for every check.
        traits: what it declares.
        name: what reports and test ids call it; its class's name unless told.
        adapter: how to use it; needed unless it has ``encode`` and ``decode`` and returns ``(reconstructions, indices,
            loss, ...)``, or a dict or pair in which these are told apart by shape and type.
        expected_failures: names of checks that must fail, each with the reason.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        traits: TokenizerTraits | None = None,
        name: str | None = None,
        adapter: TokenizerAdapter | None = None,
        expected_failures: Mapping[str, str] | None = None,
    ) -> None:
        if traits is None:
            raise TypeError(
                f"{type(model).__name__} does not tell its traits. Pass traits=TokenizerTraits(factor=..., "
                f"codebook_size=...), and image_shape= unless it takes images of 3 x 32 x 32."
            )
        self._source = model
        self.traits = traits
        self.name = name or type(model).__name__
        adapter = _usual_adapter() if adapter is None else adapter
        self.adapter = replace(adapter, forward=partial(_with_tensor, adapter.forward))
        self.expected_failures = dict(expected_failures or {})

    def images(self, batch: int = 2, size: tuple[int, int] | None = None) -> Tensor:
        """Random smooth-ish images in the declared range."""
        channels, height, width = self.traits.image_shape
        height, width = size or (height, width)
        unit = torch.rand(batch, channels, height, width)
        return self.traits.low + (self.traits.high - self.traits.low) * unit

    def fresh(self) -> Any:
        """A copy in training mode."""
        return clone(self._source).train()

    def started(self, *, training: bool = False) -> Any:
        """A copy that has seen three training batches."""
        module = self.fresh()
        with torch.no_grad():
            for _ in range(3):
                self.adapter.forward(module, self.images(4))
        if hasattr(module, "update_"):
            module.update_()
        return module.train(training)

    def differ(self, actual: Tensor, expected: Tensor) -> str:
        """How far two values are apart, bit by bit if strict."""
        if self.traits.strict or not actual.is_floating_point():
            return gap(actual, expected)
        return self.about(actual, expected)

    def about(self, actual: Tensor, expected: Tensor) -> str:
        """How far two values are apart, within the tolerance."""
        return differ(actual, expected, rtol=self.traits.rtol, atol=self.traits.atol)


def as_tokenizer(model: Any, **options: Any) -> TokenizerSubject:
    """A subject as it is, or one made of a model."""
    return model if isinstance(model, TokenizerSubject) else TokenizerSubject(model, **options)


TOKENIZER: Kind[TokenizerSubject] = Kind("model", as_tokenizer)
