"""The package's quantizers, as the kit tests them."""

from dataclasses import replace

from vq_components import DeadCodeRevival, EMAVectorQuantizer, VectorQuantizer, functional
from vq_components.testing import QuantizerSubject, traits_of

LIVELY = DeadCodeRevival(threshold=0.5, decay=0.7)
FUNCTIONS = ("nearest_code", "code_entropies", "orthogonality_loss", "kmeans")
EVEN = DeadCodeRevival(threshold=0.5, decay=0.5)  # after one update without a vector the usage is the threshold


def subjects():
    # Traits of settings are read from an object; told, they are what its arguments, or their defaults, must lead to.
    built = {
        "vector": (
            VectorQuantizer(16, 4),
            {
                "commitment_weight": 0.25,
                "codebook_weight": 1.0,
                "revives_after": 7,  # 0.9^7 < 0.5
                "functions": {name: getattr(functional, name) for name in FUNCTIONS},
            },
        ),
        "vector-paper": (
            VectorQuantizer(16, 4, init="uniform", revival=None),
            {"initial_spread": 1 / 16 / 3**0.5},  # of what is even in [-1 / K, 1 / K]
        ),
        "vector-original-weights": (
            VectorQuantizer(16, 4, commitment_weight=1.0, codebook_weight=0.25, revival=EVEN),
            {"commitment_weight": 1.0, "codebook_weight": 0.25},
        ),
        "vector-channels-last": (VectorQuantizer(16, 4, channel_dim=-1), {}),
        "vector-channels-third": (VectorQuantizer(16, 4, channel_dim=-3), {}),
        "vector-large": (VectorQuantizer(9000, 4, revival=None), {}),  # more entries than one tile of the search
        "ema": (EMAVectorQuantizer(16, 4, decay=0.95, revival=LIVELY), {"decay": 0.95}),
        "ema-default": (EMAVectorQuantizer(18, 3), {"commitment_weight": 0.25, "decay": 0.9, "eps": 1e-5}),
        "ema-weights": (
            EMAVectorQuantizer(16, 4, commitment_weight=2.0, decay=0.0, eps=0.1, revival=None),
            {"commitment_weight": 2.0, "decay": 0.0, "eps": 0.1},
        ),
    }
    return [
        QuantizerSubject(quantizer, name=name, traits=replace(traits_of(quantizer), **traits))
        for name, (quantizer, traits) in built.items()
    ]
