"""First checks of a tokenizer: whether it can be called as declared, and whether tokens stay in their place."""

from typing import Any

import torch
from torch import Tensor

from ._compare import kind_of
from ._engine import BASIC, GATE
from ._report import attempt, require
from ._tokenizer import TOKENIZER, TokenizerSubject


@TOKENIZER.check(
    rule="forward gives (reconstructions, indices, loss), and there are ways to encode images and to decode indices",
    cause="an answer in another form or methods of other names, which an adapter's forward=, encode= and decode= tell; "
    "or traits that do not fit, such as image_shape=",
    rank=GATE,
)
def check_tokenizer_call(model: TokenizerSubject) -> None:
    """Guards the other checks against traits and adapters that do not fit: while it fails, they are not run.

    Fails it::

        adapter=TokenizerAdapter(forward=...)  # of a model whose encoder is not called encode
    """
    images = model.images(2)
    answer = attempt(
        f"forward of images {tuple(images.shape)}", lambda: tuple(model.adapter.forward(model.fresh(), images))
    )
    require(len(answer) == 3, f"forward gives {len(answer)} values, not (reconstructions, indices, loss)")
    _require(answer[0], "reconstructions", floating=True, ndim=4)
    _require(answer[1], "indices", floating=False)
    require(answer[2].numel() == 1, f"the loss has shape {tuple(answer[2].shape)}")
    tokens = attempt("encode", lambda: model.adapter.encode(model.fresh(), images))
    _require(tokens, "what encode gives", floating=False)
    decoded = attempt(f"decode of indices {tuple(tokens.shape)}", lambda: model.adapter.decode(model.fresh(), tokens))
    _require(decoded, "what decode gives", floating=True, ndim=4)


def _require(value: Any, name: str, *, floating: bool, ndim: int | None = None) -> None:
    fits = isinstance(value, Tensor) and value.is_floating_point() == floating and ndim in (None, value.ndim)
    kind = "floating-point numbers" if floating else "integers"
    require(fits, f"{name}: {kind_of(value)}, not a tensor of {kind}{'' if ndim is None else f' of rank {ndim}'}")


_CELLS = 8  # along a side: fewer all see the whole image, by receptive fields and group normalization
_IMAGES = 8


def _has_places(model: TokenizerSubject) -> bool:
    traits = model.traits
    return traits.local and (traits.any_size or min(traits.image_shape[1:]) >= _CELLS * traits.factor)


@TOKENIZER.check(
    rule="a token stands for its place: new pixels in one cell of the grid change that cell's token more often than "
    "others, and a new token changes that cell's pixels more than others",
    cause="reshape where the channels must move last: every token is made of many places, without an error",
    applies=_has_places,
    needs="local=True, if tokens are a grid of which each stands mostly for its own pixels; and any_size=True, or an "
    "image_shape= of 8 x 8 tokens",
    rank=BASIC,
)
def check_token_places(model: TokenizerSubject) -> None:
    """Guards the order of positions between encoder, quantizer and decoder.

    Fails it::

        z = h.reshape(batch, height * width, channels)  # of (B, C, H, W)
    """
    traits = model.traits
    module, factor = model.started(), traits.factor
    size = (max(traits.image_shape[1], _CELLS * factor), max(traits.image_shape[2], _CELLS * factor))
    images, others = model.images(_IMAGES, size), model.images(_IMAGES, size)
    effects = []
    with torch.no_grad():
        tokens = model.adapter.encode(module, images)
        decoded = model.adapter.decode(module, tokens)
        for place in torch.randperm(tokens.shape[1] * tokens.shape[2])[:48].tolist():
            row, column = divmod(place, tokens.shape[2])
            cell = (slice(row * factor, (row + 1) * factor), slice(column * factor, (column + 1) * factor))
            mixed = images.clone()
            mixed[:, :, cell[0], cell[1]] = others[:, :, cell[0], cell[1]]
            changed = (
                (model.adapter.encode(module, mixed) != tokens).float().reshape(*tokens.shape[:3], -1).mean(dim=(0, 3))
            )
            other = tokens.clone()
            other[:, row, column] = (other[:, row, column] + 1) % traits.codebook_size
            error = (model.adapter.decode(module, other) - decoded).square().sum(dim=1)
            moved = torch.nn.functional.avg_pool2d(error, factor).mean(dim=0)
            effects.append(torch.stack([_shares(each, row, column) for each in (changed, moved)]))
    own, rest = torch.stack(effects).mean(dim=0).T.tolist()
    names = ("share of tokens that change with new pixels", "squared change of the pixels with a new token")
    for name, here, there in zip(names, own, rest, strict=True):
        fits = here > 1.3 * there or here == there == 0.0
        require(fits, f"{name}: {here:.3g} in its own cell, {there:.3g} in others")


def _shares(effect: Tensor, row: int, column: int) -> Tensor:
    """Of a change in one cell: the effect ``(H, W)`` there, and its mean over all others."""
    own = effect[row, column]
    return torch.stack([own, (effect.sum() - own) / (effect.numel() - 1)])
