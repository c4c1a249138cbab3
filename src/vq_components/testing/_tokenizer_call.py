"""First checks of a tokenizer: whether it can be called as declared, and whether tokens stay in their place."""

from typing import Any

import torch
from torch import Tensor

from ._engine import BASIC, GATE
from ._report import fail, require, told
from ._tokenizer import TOKENIZER, TokenizerSubject


@TOKENIZER.check(
    rule="forward gives (reconstructions, indices, loss), and there are ways to encode images and to decode indices",
    cause="traits that do not fit, such as image_shape=; or an adapter without forward=, encode= or decode= that fits",
    rank=GATE,
)
def check_tokenizer_call(model: TokenizerSubject) -> None:
    """Guards the other checks against traits and adapters that do not fit: while it fails, they are not run.

    Fails it::

        adapter=TokenizerAdapter(forward=...)  # of a model whose encoder is not called encode
    """
    images = model.images(2)
    answer = _answer(
        f"forward of images {tuple(images.shape)}", lambda: tuple(model.adapter.forward(model.fresh(), images))
    )
    require(len(answer) == 3, f"forward gives {len(answer)} values, not (reconstructions, indices, loss)")
    _require(answer[0], "reconstructions", floating=True, ndim=4)
    _require(answer[1], "indices", floating=False)
    _require(answer[2], "loss", floating=True)
    require(answer[2].numel() == 1, f"the loss has shape {tuple(answer[2].shape)}")
    tokens = _answer("encode", lambda: model.adapter.encode(model.fresh(), images))
    _require(tokens, "what encode gives", floating=False)
    decoded = _answer(f"decode of indices {tuple(tokens.shape)}", lambda: model.adapter.decode(model.fresh(), tokens))
    _require(decoded, "what decode gives", floating=True, ndim=4)


def _answer(what: str, call: Any) -> Any:
    try:
        return call()
    except Exception as error:
        fail(f"{what}: {told(error)}")


def _require(value: Any, name: str, *, floating: bool, ndim: int | None = None) -> None:
    found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    fits = isinstance(value, Tensor) and value.is_floating_point() == floating and ndim in (None, value.ndim)
    kind = "floating-point numbers" if floating else "integers"
    require(fits, f"{name}: {found}, not a tensor of {kind}{'' if ndim is None else f' of rank {ndim}'}")


@TOKENIZER.check(
    rule="a token stands for its place: new pixels in one cell of the grid change that cell's token more often than "
    "others, and a new token changes that cell's pixels more than others",
    cause="reshape where the channels must move last: every token is made of many places, without an error",
    applies=lambda subject: subject.traits.local,
    needs="local=True, if tokens are a grid of which each stands mostly for its own pixels",
    rank=BASIC,
)
def check_token_places(model: TokenizerSubject) -> None:
    """Guards the order of positions between encoder, quantizer and decoder.

    Fails it::

        z = h.reshape(batch, height * width, channels)  # of (B, C, H, W)
    """
    traits = model.traits
    module, factor = model.started(), traits.factor
    images, others = model.images(4), model.images(4)
    with torch.no_grad():
        tokens = model.adapter.encode(module, images)
        decoded = model.adapter.decode(module, tokens)
        height, width = tokens.shape[1:3]
        changed, moved = torch.zeros(2, height, width, height, width)
        for row in range(height):
            for column in range(width):
                cell = (slice(row * factor, (row + 1) * factor), slice(column * factor, (column + 1) * factor))
                mixed = images.clone()
                mixed[:, :, cell[0], cell[1]] = others[:, :, cell[0], cell[1]]
                different = model.adapter.encode(module, mixed) != tokens
                changed[row, column] = different.view(4, height, width, -1).any(dim=3).float().mean(dim=0)
                other = tokens.clone()
                step = 1 + (row + column) % (traits.codebook_size - 1)
                other[:, row, column] = (other[:, row, column] + step) % traits.codebook_size
                error = (model.adapter.decode(module, other) - decoded).square().sum(dim=1)
                moved[row, column] = torch.nn.functional.avg_pool2d(error, factor).mean(dim=0)
    _require_own(changed, "tokens that change with new pixels")
    _require_own(moved, "squared change of the pixels with a new token")


def _require_own(effect: Tensor, what: str) -> None:
    """``effect`` is that of a change in one cell (first two dimensions) on each (the others)."""
    cells = effect.shape[0] * effect.shape[1]
    square = effect.reshape(cells, cells)
    own = float(square.diagonal().mean())
    rest = float((square.sum() - square.diagonal().sum()) / max(cells * (cells - 1), 1))
    require(own > 1.5 * rest or own == rest == 0.0, f"{what}: {own:.3g} in its own cell, {rest:.3g} in others")
