"""The package's priors, as the kit tests them."""

import torch

from vq_components import ClassLabel, ConditionalPrior, Coordinates, MinGPT, SpatialTokens, StartToken, TokenOrder
from vq_components.testing import PriorSubject, PriorTraits

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16}
GRID = (3, 4)
LENGTH = GRID[0] * GRID[1]
VOCAB = 11


def conditional(name, conditions, values, *, before, grid=GRID, unmasked=0, **settings):
    dropout = settings.get("condition_dropout", 0.0)
    size = ConditionalPrior.vocab_size(
        image_vocab=VOCAB, conditions=conditions, condition_dropout=dropout, offset=settings.get("offset", True)
    )
    length = grid[0] * grid[1]
    gpt = MinGPT(size, before + length - 1, n_unmasked=unmasked, **SIZES)
    traits = PriorTraits(
        vocab_size=VOCAB,
        length=length,
        predicts_next=False,
        conditions=values,
        guided=dropout > 0,
        grid=grid,
        strict=True,
    )
    return PriorSubject(
        ConditionalPrior(gpt, image_vocab=VOCAB, conditions=conditions, **settings), name=name, traits=traits
    )


def transformer(name, order, **settings):
    """A transformer over sequences that go through a grid in an order."""
    traits = PriorTraits(
        vocab_size=13,
        length=9,
        n_unmasked=settings.get("n_unmasked", 0),
        strict=True,
        order=order,
        dropout=tuple(settings.get(f"{name}_pdrop", 0.0) for name in ("embd", "resid", "attn")),
    )
    return PriorSubject(MinGPT(13, 9, **settings, **SIZES), name=name, traits=traits)


def labels(batch):
    return (torch.randint(7, (batch,)),)


def everything(batch):
    return (torch.randint(7, (batch,)), torch.randint(5, (batch, *GRID)), torch.randint(5, (batch, 2)) / 4)


def grids(height, width):
    """Values of a spatial condition."""
    return lambda batch: (torch.randint(5, (batch, height, width)),)


def subjects():
    torch.manual_seed(0)
    return [
        PriorSubject(MinGPT(13, 9, **SIZES), name="gpt"),
        transformer("gpt-unmasked", TokenOrder.z_curve(3, 3), n_unmasked=4),
        transformer("gpt-attention-dropout", TokenOrder.spiral_out(3, 3), attn_pdrop=0.2),
        transformer("gpt-embedding-dropout", TokenOrder.subsample(1, 9), embd_pdrop=0.2),
        transformer("gpt-residual-dropout", TokenOrder(torch.tensor([4, 0, 3, 1, 2, 5]), grid=(3, 2)), resid_pdrop=0.2),
        conditional("start", (StartToken(),), None, before=1),
        conditional("class", (ClassLabel(7),), labels, before=1, pkeep=0.8, condition_dropout=0.3),
        conditional("shared-range", (ClassLabel(7),), labels, before=1, offset=False, condition_dropout=0.3),
        conditional(
            "everything",
            (ClassLabel(7), SpatialTokens(5), Coordinates(4)),
            everything,
            before=3 + LENGTH,
            unmasked=8,
            condition_dropout=0.1,
        ),
        conditional(
            "finer-grid",
            (StartToken(), SpatialTokens(5)),
            grids(4, 4),
            before=1 + 16,
            grid=(2, 2),
            condition_dropout=0.2,
        ),
        conditional("coarser-grid", (SpatialTokens(5),), grids(2, 2), before=4, unmasked=4),
    ]
