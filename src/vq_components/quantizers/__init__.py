"""Quantizers: vectors in; vectors, indices and a loss out."""

from ._base import AbstractQuantizer as AbstractQuantizer
from ._base import QuantizerOutput as QuantizerOutput
from ._health import CodebookHealth as CodebookHealth
from ._revival import DeadCodeRevival as DeadCodeRevival
from ._vector import EMAVectorQuantizer as EMAVectorQuantizer
from ._vector import VectorQuantizer as VectorQuantizer
