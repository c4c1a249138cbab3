"""The package's priors, as the kit tests them."""

import torch

from vq_components import ClassLabel, ConditionalPrior, Coordinates, MinGPT, SpatialTokens, StartToken
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
    gpt = MinGPT(size, before + LENGTH - 1, n_unmasked=unmasked, **SIZES)
    traits = PriorTraits(
        vocab_size=VOCAB,
        length=LENGTH,
        predicts_next=False,
        conditions=values,
        guided=dropout > 0,
        grid=grid,
        strict=True,
    )
    return PriorSubject(
        ConditionalPrior(gpt, image_vocab=VOCAB, conditions=conditions, **settings), name=name, traits=traits
    )


def labels(batch):
    return (torch.randint(7, (batch,)),)


def everything(batch):
    return (torch.randint(7, (batch,)), torch.randint(5, (batch, *GRID)), torch.randint(5, (batch, 2)) / 4)


def subjects():
    torch.manual_seed(0)
    return [
        PriorSubject(MinGPT(13, 9, **SIZES), name="gpt"),
        PriorSubject(MinGPT(13, 9, n_unmasked=4, **SIZES), name="gpt-unmasked"),
        PriorSubject(MinGPT(13, 9, attn_pdrop=0.2, **SIZES), name="gpt-attention-dropout"),
        PriorSubject(MinGPT(13, 9, embd_pdrop=0.2, **SIZES), name="gpt-embedding-dropout"),
        PriorSubject(MinGPT(13, 9, resid_pdrop=0.2, **SIZES), name="gpt-residual-dropout"),
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
    ]
