"""A codebook of any name, known by what comes out of its quantizer."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize

from ._compare import differ
from ._quantizer_adapters import QuantizerAdapter
from ._quantizer_traits import QuantizerTraits


def may_have_codebook(traits: QuantizerTraits) -> bool:
    """Whether each output is one entry of a single codebook, as far as the traits tell."""
    return not traits.composite and traits.index_shape == () and traits.codebook_size is not None


def recognize_codebook(
    module: nn.Module, rows: Tensor, outputs: Tensor, traits: QuantizerTraits
) -> Callable[[Any], Tensor] | None:
    """The parameter or buffer, as ``(K, D)``, ``(1, K, D)`` or ``(D, K)``, whose rows ``(N,)`` are the outputs.

    Of cosine codes it is enough that the directions are.
    """
    for name in [name for name, _ in (*module.named_parameters(), *module.named_buffers())]:
        for turned in (False, True):
            entries = _entries(module, name, turned=turned)
            if entries.shape == (traits.codebook_size, outputs.shape[1]):
                pair = (outputs, entries.detach()[rows])
                if traits.distance == "cosine":
                    pair = (normalize(pair[0], dim=1), normalize(pair[1], dim=1))
                if not differ(*pair, rtol=traits.rtol, atol=traits.atol):
                    return partial(_entries, name=name, turned=turned)
    return None


def _entries(module: Any, name: str, *, turned: bool) -> Tensor:
    """A tensor of a module as a matrix where it is one, else as it is."""
    path, _, last = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(path), last)
    matrix = tensor[0] if tensor.ndim == 3 and len(tensor) == 1 else tensor
    return matrix.T if turned and matrix.ndim == 2 else matrix


def warn_of_unchecked(name: str, adapter: QuantizerAdapter, traits: QuantizerTraits) -> None:
    """Says what is declared of a codebook that is not known; an adapter with traits knows what it leaves out."""
    if adapter.codebook is None and adapter.traits is None and traits.distance is not None:
        warnings.warn(
            f"distance={traits.distance!r} of {name} is declared but not checked: there is no codebook, or "
            f"embedding.weight, and no parameter or buffer whose rows come out. Pass adapter=QuantizerAdapter("
            f"call=..., codebook=lambda module: ...).",
            stacklevel=4,
        )
