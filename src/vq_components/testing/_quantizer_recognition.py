"""A codebook of any name, known by what comes out of its quantizer."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ._compare import differ
from ._quantizer_adapters import QuantizerAdapter
from ._quantizer_traits import QuantizerTraits


def recognize_codebook(
    module: nn.Module,
    rows: Tensor,
    outputs: Tensor,
    traits: QuantizerTraits,
    named: Callable[[Any], Tensor] | None,
    *,
    learned: bool,
) -> Callable[[Any], Tensor] | None:
    """The parameter or buffer, as ``(K, D)``, ``(1, K, D)`` or ``(D, K)``, whose rows ``(N,)`` are the outputs.

    Else the one that is ``named`` so, if any output is one of its entries, or if it is ``learned`` and a distance to it
    is declared: what a linear map makes of fixed entries, or a projection, is none. Of cosine codes it is enough that
    the directions are the same.
    """
    shape = (traits.codebook_size, outputs.shape[1])
    for name in [name for name, _ in (*module.named_parameters(), *module.named_buffers())]:
        for turned in (False, True):
            entries = _entries(module, name, turned=turned).detach()
            if entries.shape == shape and _same(outputs, entries[rows], traits):
                return partial(_entries, name=name, turned=turned)
    entries = torch.empty(0) if named is None else named(module).detach().to(outputs.dtype)
    if entries.shape != shape:
        return None
    nearest = entries[torch.cdist(outputs, entries).argmin(dim=1)]
    meant = learned and traits.distance is not None
    return named if meant or _same(outputs, nearest, traits, some=True) else None


def _same(outputs: Tensor, entries: Tensor, traits: QuantizerTraits, *, some: bool = False) -> bool:
    """Whether all, or some, of the rows are equal."""
    if traits.distance == "cosine":
        outputs, entries = normalize(outputs, dim=1), normalize(entries, dim=1)
    texts = [differ(*pair, rtol=traits.rtol, atol=traits.atol) for pair in zip(outputs, entries, strict=True)]
    return not all(texts) if some else not any(texts)


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
