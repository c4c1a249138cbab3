"""Pure functions on tensors: no modules, no state."""

from ._adversarial import adaptive_weight as adaptive_weight
from ._adversarial import hinge_discriminator_loss as hinge_discriminator_loss
from ._adversarial import hinge_generator_loss as hinge_generator_loss
from ._adversarial import non_saturating_discriminator_loss as non_saturating_discriminator_loss
from ._adversarial import non_saturating_generator_loss as non_saturating_generator_loss
from ._adversarial import vanilla_discriminator_loss as vanilla_discriminator_loss
from ._adversarial import vanilla_generator_loss as vanilla_generator_loss
from ._codes import codebook_usage as codebook_usage
from ._codes import nearest_code as nearest_code
from ._codes import perplexity as perplexity
from ._estimators import rotate as rotate
from ._estimators import straight_through as straight_through
from ._index import index_backprop as index_backprop
from ._kmeans import kmeans as kmeans
from ._regularizers import CodeEntropies as CodeEntropies
from ._regularizers import bit_entropies as bit_entropies
from ._regularizers import code_entropies as code_entropies
from ._regularizers import orthogonality_loss as orthogonality_loss
from ._sampling import filter_logits as filter_logits

__all__ = [
    "CodeEntropies",
    "adaptive_weight",
    "bit_entropies",
    "code_entropies",
    "codebook_usage",
    "filter_logits",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "index_backprop",
    "kmeans",
    "nearest_code",
    "non_saturating_discriminator_loss",
    "non_saturating_generator_loss",
    "orthogonality_loss",
    "perplexity",
    "rotate",
    "straight_through",
    "vanilla_discriminator_loss",
    "vanilla_generator_loss",
]
