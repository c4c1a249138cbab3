"""The package's other quantizers and its wrappers, as the kit tests them."""

import torch

from vq_components import (
    FSQ,
    LFQ,
    EMAVectorQuantizer,
    GroupedQuantizer,
    GumbelQuantizer,
    IndexBackpropQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
)
from vq_components.testing import QuantizerSubject, QuantizerTraits, traits_of


def declared(quantizer, **traits):
    return QuantizerTraits(**{**vars(traits_of(quantizer)), **traits})


def subjects():
    torch.manual_seed(0)
    nearest = {"distance": "euclidean", "estimator": "straight_through"}
    built = {
        "cosine": (VectorQuantizer(16, 4, distance="cosine"), {}),
        "cosine-ema": (EMAVectorQuantizer(16, 4, distance="cosine", decay=0.9), {}),
        "fsq": (FSQ((5, 4, 3)), {}),
        "lfq": (LFQ(5), {"batched_loss": False}),
        "simvq": (SimVQ(16, 4, commitment_weight=0.5, codebook_weight=2.0), {**nearest, "learns": True}),
        "index": (IndexBackpropQuantizer(16, 4), {}),
        "gumbel": (GumbelQuantizer(16, 4, in_channels=6), {"stochastic": True}),
        "projected": (ProjectedQuantizer(VectorQuantizer(16, 4), dim=6), {}),
        "residual": (ResidualQuantizer([VectorQuantizer(16, 4) for _ in range(3)]), {}),
        "residual-ema": (
            ResidualQuantizer([EMAVectorQuantizer(16, 4, decay=0.9) for _ in range(2)], channel_dim=-1),
            {},
        ),
        "grouped": (GroupedQuantizer([VectorQuantizer(16, 3), VectorQuantizer(16, 2)]), {}),
    }
    return [
        QuantizerSubject(each, name=name, traits=declared(each, **traits)) for name, (each, traits) in built.items()
    ]
