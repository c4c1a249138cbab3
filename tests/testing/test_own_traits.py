"""What the kit reads from this package's quantizers, where nothing is declared: sizes other than the contract's."""

import pytest

from vq_components import (
    FSQ,
    LFQ,
    EMAVectorQuantizer,
    GumbelQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
    functional,
)
from vq_components.testing import check_quantizer

QUANTIZERS = {
    "one-channel": lambda: VectorQuantizer(8, 1),
    "four-entries": lambda: VectorQuantizer(4, 4),
    "large": lambda: VectorQuantizer(512, 64),
    "wide-ema": lambda: EMAVectorQuantizer(1024, 256),
    "one-channel-ema": lambda: EMAVectorQuantizer(8, 1),
    "crowded-ema": lambda: EMAVectorQuantizer(256, 1),
    "cosine-ema": lambda: EMAVectorQuantizer(256, 32, distance="cosine"),
    "rotate": lambda: VectorQuantizer(64, 8, estimator=functional.rotate),
    "fsq": lambda: FSQ((8, 8)),
    "lfq": lambda: LFQ(6),
    "projected-lfq": lambda: ProjectedQuantizer(LFQ(6), dim=8),
    "gumbel": lambda: GumbelQuantizer(32, 8, in_channels=4),
    "residual": lambda: ResidualQuantizer([VectorQuantizer(128, 4) for _ in range(2)]),
    "residual-dropout": lambda: ResidualQuantizer([VectorQuantizer(16, 4) for _ in range(3)], dropout=0.5),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_nothing_has_to_be_declared(name):
    check_quantizer(QUANTIZERS[name]())
