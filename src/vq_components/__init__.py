"""The parts of a VQ-GAN as small, composable PyTorch modules."""

from . import functional as functional
from .quantizers import AbstractQuantizer as AbstractQuantizer
from .quantizers import DeadCodeRevival as DeadCodeRevival
from .quantizers import EMAVectorQuantizer as EMAVectorQuantizer
from .quantizers import QuantizerOutput as QuantizerOutput
from .quantizers import VectorQuantizer as VectorQuantizer

__version__ = "0.1.0"
