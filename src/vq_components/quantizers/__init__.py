"""Quantizers: vectors in; vectors, indices and a loss out."""

from ._base import AbstractQuantizer as AbstractQuantizer
from ._base import QuantizerOutput as QuantizerOutput
from ._gumbel import GumbelQuantizer as GumbelQuantizer
from ._health import CodebookHealth as CodebookHealth
from ._index import IndexBackpropQuantizer as IndexBackpropQuantizer
from ._linear import SimVQ as SimVQ
from ._revival import DeadCodeRevival as DeadCodeRevival
from ._scalar import FSQ as FSQ
from ._scalar import LFQ as LFQ
from ._vector import EMAVectorQuantizer as EMAVectorQuantizer
from ._vector import VectorQuantizer as VectorQuantizer
from ._wrappers import GroupedQuantizer as GroupedQuantizer
from ._wrappers import ProjectedQuantizer as ProjectedQuantizer
from ._wrappers import ResidualQuantizer as ResidualQuantizer
