"""The package's quantizers, as the kit tests them."""

from vq_components import DeadCodeRevival, EMAVectorQuantizer, VectorQuantizer
from vq_components.testing import QuantizerSubject

LIVELY = DeadCodeRevival(threshold=0.5, decay=0.7)


def subjects():
    built = {
        "vector": VectorQuantizer(16, 4),
        "vector-paper": VectorQuantizer(16, 4, init="uniform", revival=None),
        "vector-original-weights": VectorQuantizer(16, 4, commitment_weight=1.0, codebook_weight=0.25, revival=LIVELY),
        "vector-channels-last": VectorQuantizer(16, 4, channel_dim=-1),
        "vector-channels-third": VectorQuantizer(16, 4, channel_dim=-3),
        "vector-large": VectorQuantizer(9000, 4, revival=None),  # more entries than one tile of the search
        "ema": EMAVectorQuantizer(16, 4, decay=0.9, revival=LIVELY),
        "ema-default": EMAVectorQuantizer(18, 3),
        "ema-weights": EMAVectorQuantizer(16, 4, commitment_weight=2.0, decay=0.5, eps=0.1, revival=None),
    }
    return [QuantizerSubject(quantizer, name=name) for name, quantizer in built.items()]
