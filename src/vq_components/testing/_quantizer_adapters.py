"""How to call a quantizer, and what to read from its answer."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._answers import AnswerReader
from ._compare import as_loss_tensor
from ._quantizer_traits import QuantizerTraits


class QuantizerResult(NamedTuple):
    """What the checks want to know of one call."""

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    terms: dict[str, Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizerAdapter:
    """Functions that say how a quantizer is used. Only the first one is needed.

    Args:
        call: ``(module, z) -> (quantized, indices, loss)``; a loss of None, or none at all, is 0.
        masked: ``(module, z, mask) -> (quantized, indices, loss)``; needed only if it takes a mask.
        encode: ``(module, z) -> indices``, as ``call`` gives them.
        decode: ``(module, indices, shape) -> quantized``, of such indices, where ``shape`` is that of the ``z`` they
            stand for.
        codebook: ``(module) -> (K, D)``; if neither it nor ``traits`` is told, the parameter or buffer whose rows come
            out.
        traits: ``(module) -> QuantizerTraits``, used where none are given.
    """

    call: Callable[[Any, Tensor], tuple[Any, ...]]
    masked: Callable[[Any, Tensor, Tensor], tuple[Any, ...]] | None = None
    encode: Callable[[Any, Tensor], Tensor] | None = None
    decode: Callable[[Any, Tensor, torch.Size], Tensor] | None = None
    codebook: Callable[[Any], Tensor] | None = None
    traits: Callable[[Any], QuantizerTraits] | None = None


def as_result(answer: tuple[Any, ...]) -> QuantizerResult:
    """What an adapter's function returned, whose loss may be a plain number, None, or left out."""
    quantized, indices, loss, terms = (*answer, None, None)[:4]
    return QuantizerResult(quantized, indices, as_loss_tensor(loss), terms)


def _find_result(reader: AnswerReader, answer: Any, z: Tensor) -> QuantizerResult:
    """Reads ``(quantized, indices, loss)`` from what a quantizer returned: attributes called so, else as they look."""
    if not isinstance(answer, dict) and all(hasattr(answer, name) for name in ("quantized", "indices", "loss")):
        return QuantizerResult(answer.quantized, answer.indices, answer.loss, getattr(answer, "terms", None))
    return QuantizerResult(*reader.read(answer, z, lambda t: t.ndim == z.ndim and t.shape[0] == z.shape[0]))


def as_adapter(adapter: Any, module: Any) -> QuantizerAdapter:
    """An adapter: as given, made of a call function, or the one for objects that say what they return."""
    if isinstance(adapter, QuantizerAdapter):
        return adapter
    reader = AnswerReader(
        what="quantized vectors for", remedy="pass an adapter that returns (quantized, indices, loss)"
    )
    return QuantizerAdapter(
        call=adapter or (lambda module, z: _find_result(reader, module(z), z)),
        masked=lambda module, z, mask: _find_result(reader, _pass_mask(module, z, mask), z),
        encode=_find_encode(module),
        decode=_find_decode(module),
        codebook=_find_codebook(module),
    )


def _pass_mask(module: Any, z: Tensor, mask: Tensor) -> Any:
    """By its name, where it has that; else as the second argument."""
    named = "mask" in inspect.signature(module.forward).parameters
    return module(z, mask=mask) if named else module(z, mask)


def _find_encode(module: Any) -> Callable[[Any, Tensor], Tensor] | None:
    if callable(getattr(module, "encode", None)):
        return lambda module, z: module.encode(z)
    return None


def _find_decode(module: Any) -> Callable[[Any, Tensor, torch.Size], Tensor] | None:
    if callable(getattr(module, "decode", None)):
        return lambda module, indices, shape: module.decode(indices)
    return None


def _find_codebook(module: Any) -> Callable[[Any], Tensor] | None:
    try:
        codebook = getattr(module, "codebook", None)
    except TypeError:  # one that says that it has none
        return None
    if isinstance(codebook, Tensor) and codebook.ndim == 2:
        return lambda module: module.codebook
    weight = getattr(getattr(module, "embedding", None), "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2:
        return lambda module: module.embedding.weight
    return None


def find_traits(module: Any, adapter: QuantizerAdapter) -> QuantizerTraits:
    """Traits that a quantizer declares, that its adapter knows, or that its attributes tell."""
    declared = getattr(module, "check_traits", None)
    if declared is not None:
        traits: QuantizerTraits = declared() if callable(declared) else declared
        return traits
    if adapter.traits is not None:
        return adapter.traits(module)
    codebook = None if adapter.codebook is None else adapter.codebook(module)
    dim = getattr(module, "dim", None) or (None if codebook is None else codebook.shape[1])
    if not isinstance(dim, int):
        raise TypeError(
            f"{type(module).__name__} does not tell its number of channels by an attribute dim or a codebook (K, D). "
            f"Pass traits=QuantizerTraits(dim=...)."
        )
    size = getattr(module, "codebook_size", None if codebook is None else len(codebook))
    channel_dim = getattr(module, "channel_dim", 1)
    space = tuple(count for count in range(4) if -2 - count < channel_dim < 2 + count)  # channels are not the batch
    base: dict[str, Any] = {"dim": dim, "codebook_size": size, "channel_dim": channel_dim, "space": space}
    if not (hasattr(module, "update_") and hasattr(module, "index_shape")):
        return QuantizerTraits(**base)
    return _own_traits(module, base, has_codebook=codebook is not None)


def revives_itself(module: Any) -> bool:
    """Whether it has entries of its own that can be revived, not those of quantizers inside of it."""
    return hasattr(module, "embedding") and hasattr(module, "revival")


def _draws(part: Any) -> bool:
    """Whether its training output is random: by Gumbel noise, or by the number of stages."""
    has_noise = hasattr(part, "kl_weight") and hasattr(part, "temperature")
    return has_noise or (hasattr(part, "quantizers") and getattr(part, "dropout", 0.0) > 0)


def _own_traits(module: Any, base: dict[str, Any], *, has_codebook: bool) -> QuantizerTraits:
    """Of quantizers with this package's interface, which have settings under known names."""
    common: dict[str, Any] = {
        **base,
        "dim_out": getattr(module, "dim_out", None),
        "index_shape": module.index_shape,
        "mask": "mask" in inspect.signature(module.forward).parameters,
        "two_phase": True,
        "strict": True,
        "stochastic": any(_draws(part) for part in module.modules()),
        "batched_loss": not any(hasattr(part, "diversity_weight") for part in module.modules()),  # of the batch
    }
    state = getattr(module, "embedding", module)
    if not (has_codebook and revives_itself(module)):  # not one of the two that look up free vectors
        learns_from_output = any(getattr(part, "_learns_from_output", False) for part in module.modules())
        return QuantizerTraits(
            **common, composite=not has_codebook, estimator="other", trains_codebook=learns_from_output, learns=False
        )
    common["starts_from_data"] = bool(getattr(state, "starts_from_data", False))
    if getattr(state, "unit_norm", False):
        return QuantizerTraits(**common, distance="cosine", estimator="other")
    return QuantizerTraits(
        **common,
        distance="euclidean",
        estimator="straight_through" if getattr(module.estimator, "__name__", "") == "straight_through" else "other",
        commitment_weight=module.commitment_weight,
        codebook_weight=getattr(module, "codebook_weight", 0.0),
        decay=state.decay if hasattr(state, "embed_avg") else None,
        eps=state.eps,
    )
