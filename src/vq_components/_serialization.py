"""The result types, made known to ``torch.export``, so that programs that return them can be saved and loaded."""

from torch.utils import _pytree

from ._model import VQModelOutput
from .prior import PriorOutput
from .quantizers import QuantizerOutput

for _kind in (PriorOutput, QuantizerOutput, VQModelOutput):
    _pytree._register_namedtuple(_kind, serialized_type_name=f"vq_components.{_kind.__name__}")
