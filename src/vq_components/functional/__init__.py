"""Pure functions on tensors: no modules, no state."""

from ._codes import codebook_usage as codebook_usage
from ._codes import nearest_code as nearest_code
from ._codes import perplexity as perplexity
from ._estimators import straight_through as straight_through
