"""Checks for everybody's quantizers, tokenizers, losses and priors.

``check_quantizer(quantizer)`` runs all that apply and raises one error with what it found;
``parametrize_with_checks([...])`` makes a pytest test of each. Nothing but torch is imported here.
"""

from . import _loss_manners as _loss_manners
from . import _loss_players as _loss_players
from . import _loss_values as _loss_values
from . import _prior_conditional as _prior_conditional
from . import _prior_logits as _prior_logits
from . import _prior_network as _prior_network
from . import _prior_sampling as _prior_sampling
from . import _quantizer_gradients as _quantizer_gradients
from . import _quantizer_layout as _quantizer_layout
from . import _quantizer_manners as _quantizer_manners
from . import _quantizer_mask as _quantizer_mask
from . import _quantizer_revival as _quantizer_revival
from . import _quantizer_state as _quantizer_state
from . import _quantizer_systems as _quantizer_systems
from . import _quantizer_updates as _quantizer_updates
from . import _quantizer_values as _quantizer_values
from . import _tokenizer_checks as _tokenizer_checks
from ._loss_adapters import LossAdapter as LossAdapter
from ._loss_adapters import LossTraits as LossTraits
from ._loss_adapters import Scene as Scene
from ._loss_adapters import own_loss as own_loss
from ._loss_adapters import taming_loss as taming_loss
from ._loss_subject import LossSubject as LossSubject
from ._prior_subject import PriorAdapter as PriorAdapter
from ._prior_subject import PriorSubject as PriorSubject
from ._prior_subject import PriorTraits as PriorTraits
from ._public import check_loss as check_loss
from ._public import check_prior as check_prior
from ._public import check_quantizer as check_quantizer
from ._public import check_tokenizer as check_tokenizer
from ._public import checks_of as checks_of
from ._public import parametrize_with_checks as parametrize_with_checks
from ._public import traits_of as traits_of
from ._quantizer_adapters import QuantizerAdapter as QuantizerAdapter
from ._quantizer_adapters import QuantizerResult as QuantizerResult
from ._quantizer_adapters import diffusers as diffusers
from ._quantizer_adapters import taming as taming
from ._quantizer_adapters import vector_quantize_pytorch as vector_quantize_pytorch
from ._quantizer_subject import QuantizerSubject as QuantizerSubject
from ._quantizer_traits import QuantizerTraits as QuantizerTraits
from ._report import CheckError as CheckError
from ._report import CheckFailure as CheckFailure
from ._tokenizer import TokenizerAdapter as TokenizerAdapter
from ._tokenizer import TokenizerSubject as TokenizerSubject
from ._tokenizer import TokenizerTraits as TokenizerTraits
