"""The parts of a VQ-GAN as small, composable PyTorch modules."""

from . import functional as functional
from ._model import VQModel as VQModel
from ._model import VQModelOutput as VQModelOutput
from .functional import adaptive_weight as adaptive_weight
from .losses import LossOutput as LossOutput
from .losses import LPIPSLoss as LPIPSLoss
from .losses import VQGANLoss as VQGANLoss
from .losses import VQLPIPSWithDiscriminator as VQLPIPSWithDiscriminator
from .networks import ActNorm as ActNorm
from .networks import Decoder as Decoder
from .networks import Encoder as Encoder
from .networks import NLayerDiscriminator as NLayerDiscriminator
from .quantizers import AbstractQuantizer as AbstractQuantizer
from .quantizers import DeadCodeRevival as DeadCodeRevival
from .quantizers import EMAVectorQuantizer as EMAVectorQuantizer
from .quantizers import QuantizerOutput as QuantizerOutput
from .quantizers import VectorQuantizer as VectorQuantizer

__all__ = [
    "AbstractQuantizer",
    "ActNorm",
    "DeadCodeRevival",
    "Decoder",
    "EMAVectorQuantizer",
    "Encoder",
    "LPIPSLoss",
    "LossOutput",
    "NLayerDiscriminator",
    "QuantizerOutput",
    "VQGANLoss",
    "VQLPIPSWithDiscriminator",
    "VQModel",
    "VQModelOutput",
    "VectorQuantizer",
    "adaptive_weight",
    "functional",
]

__version__ = "0.1.0"
