"""The parts of a VQ-GAN as small, composable PyTorch modules."""

from . import _serialization as _serialization
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
from .prior import ClassLabel as ClassLabel
from .prior import Condition as Condition
from .prior import ConditionalPrior as ConditionalPrior
from .prior import Coordinates as Coordinates
from .prior import MinGPT as MinGPT
from .prior import PriorOutput as PriorOutput
from .prior import SpatialTokens as SpatialTokens
from .prior import StartToken as StartToken
from .prior import TokenOrder as TokenOrder
from .prior import generate as generate
from .prior import generate_windows as generate_windows
from .quantizers import FSQ as FSQ
from .quantizers import LFQ as LFQ
from .quantizers import AbstractQuantizer as AbstractQuantizer
from .quantizers import CodebookHealth as CodebookHealth
from .quantizers import DeadCodeRevival as DeadCodeRevival
from .quantizers import EMAVectorQuantizer as EMAVectorQuantizer
from .quantizers import GroupedQuantizer as GroupedQuantizer
from .quantizers import GumbelQuantizer as GumbelQuantizer
from .quantizers import IndexBackpropQuantizer as IndexBackpropQuantizer
from .quantizers import ProjectedQuantizer as ProjectedQuantizer
from .quantizers import QuantizerOutput as QuantizerOutput
from .quantizers import ResidualQuantizer as ResidualQuantizer
from .quantizers import SimVQ as SimVQ
from .quantizers import VectorQuantizer as VectorQuantizer

__all__ = [
    "FSQ",
    "LFQ",
    "AbstractQuantizer",
    "ActNorm",
    "ClassLabel",
    "CodebookHealth",
    "Condition",
    "ConditionalPrior",
    "Coordinates",
    "DeadCodeRevival",
    "Decoder",
    "EMAVectorQuantizer",
    "Encoder",
    "GroupedQuantizer",
    "GumbelQuantizer",
    "IndexBackpropQuantizer",
    "LPIPSLoss",
    "LossOutput",
    "MinGPT",
    "NLayerDiscriminator",
    "PriorOutput",
    "ProjectedQuantizer",
    "QuantizerOutput",
    "ResidualQuantizer",
    "SimVQ",
    "SpatialTokens",
    "StartToken",
    "TokenOrder",
    "VQGANLoss",
    "VQLPIPSWithDiscriminator",
    "VQModel",
    "VQModelOutput",
    "VectorQuantizer",
    "adaptive_weight",
    "functional",
    "generate",
    "generate_windows",
]

__version__ = "0.1.0"
