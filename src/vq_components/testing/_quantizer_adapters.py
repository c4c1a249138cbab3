"""How to call a quantizer, and what to read from its answer."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

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
        call: ``(module, z) -> (quantized, indices, loss)``.
        decode: ``(module, indices, shape) -> quantized``, where ``shape`` is that of the ``z`` they stand for.
        codebook: ``(module) -> (K, D)``.
        traits: ``(module) -> QuantizerTraits``, used where none are given.
    """

    call: Callable[[Any, Tensor], tuple[Any, ...]]
    decode: Callable[[Any, Tensor, torch.Size], Tensor] | None = None
    codebook: Callable[[Any], Tensor] | None = None
    traits: Callable[[Any], QuantizerTraits] | None = None


def find_result(answer: Any, z: Tensor) -> QuantizerResult:
    """Reads ``(quantized, indices, loss)`` from what a quantizer returned, in whatever order and nesting.

    Fields called so are taken; else the first floating-point tensor with the batch of ``z`` and its rank is the output,
    the first integer tensor the indices, and the first single floating-point number the loss, 0 if there is none.
    """
    if all(hasattr(answer, name) for name in ("quantized", "indices", "loss")):
        return QuantizerResult(answer.quantized, answer.indices, answer.loss, getattr(answer, "terms", None))
    tensors = list(_tensors(answer))
    outputs = [t for t in tensors if t.is_floating_point() and t.ndim == z.ndim and t.shape[0] == z.shape[0]]
    indices = [t for t in tensors if not t.is_floating_point() and t.dtype != torch.bool]
    losses = [t for t in tensors if t.is_floating_point() and t.numel() == 1 and not any(t is o for o in outputs[:1])]
    if not outputs or not indices:
        found = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in tensors) or "no tensor"
        raise TypeError(f"no quantized vectors and indices in the answer ({found}): pass an adapter that finds them")
    loss = losses[0] if losses else outputs[0].new_zeros(())
    return QuantizerResult(outputs[0], indices[0], loss)


def _tensors(answer: Any) -> Iterator[Tensor]:
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, dict):
        for value in answer.values():
            yield from _tensors(value)
    elif isinstance(answer, (tuple, list)):
        for value in answer:
            yield from _tensors(value)


def as_adapter(adapter: Any, module: Any) -> QuantizerAdapter:
    """An adapter: as given, made of a call function, or the one for objects that say what they return."""
    if isinstance(adapter, QuantizerAdapter):
        return adapter
    if adapter is not None:
        return QuantizerAdapter(call=adapter, decode=_find_decode(module), codebook=_find_codebook(module))
    return QuantizerAdapter(
        call=lambda module, z: find_result(module(z), z), decode=_find_decode(module), codebook=_find_codebook(module)
    )


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


def _own_traits(module: Any, base: dict[str, Any], *, has_codebook: bool) -> QuantizerTraits:
    """Of quantizers with this package's interface, which have settings under known names."""
    common: dict[str, Any] = {
        **base,
        "dim_out": getattr(module, "dim_out", None),
        "index_shape": module.index_shape,
        "mask": "mask" in inspect.signature(module.forward).parameters,
        "two_phase": True,
        "strict": True,
    }
    state = getattr(module, "embedding", module)
    if not (has_codebook and hasattr(module, "revival")):  # not one of the two that look up free vectors
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
        commitment_weight=module.commitment_weight,
        codebook_weight=getattr(module, "codebook_weight", 0.0),
        decay=state.decay if hasattr(state, "embed_avg") else None,
        eps=state.eps,
    )


def _peer_traits(module: Any) -> QuantizerTraits:
    """Of vector-quantize-pytorch's classes: channels last unless told otherwise, one sequence or image dimension."""
    from_image = bool(getattr(module, "accept_image_fmap", False) or getattr(module, "channel_first", False))
    name = type(module).__name__
    groups = getattr(module, "rvqs", None)
    size = getattr(groups[0] if groups else module, "codebook_size", None)
    composite = name != "VectorQuantize" or module.heads > 1
    projects = isinstance(getattr(module, "project_in", None), nn.Linear)
    learning = ("VectorQuantize", "ResidualVQ", "GroupedResidualVQ", "SimVQ", "ResidualSimVQ")
    return QuantizerTraits(
        dim=_peer_dim(module),
        codebook_size=int(size) if size is not None else None,
        channel_dim=1 if from_image else -1,
        space=(2,) if from_image else (1,),
        index_shape=_peer_index_shape(module),
        composite=composite,
        distance=None if composite else _peer_distance(module),
        estimator="other",  # the rotation trick by default, or a gradient through a bound
        trains_codebook=name != "VectorQuantize" or projects,
        learns=name in learning and not projects,  # what projects back learns from the decoder alone
        half=not projects,  # a projection runs in half precision, as all linear layers do under autocast
        batched_loss="LFQ" not in name,  # an entropy of the batch
    )


def _peer_index_shape(module: Any) -> tuple[int, ...]:
    if getattr(module, "rvqs", None):
        return (len(module.rvqs), *_peer_index_shape(module.rvqs[0]))
    if getattr(module, "num_quantizers", None) is not None:
        return (int(module.num_quantizers),)
    if getattr(module, "keep_num_codebooks_dim", False):
        return (int(module.num_codebooks),)
    heads = getattr(module, "heads", 1)
    return (int(heads),) if heads > 1 else ()


def _peer_distance(module: Any) -> Literal["euclidean", "cosine"]:
    return "cosine" if "Cosine" in type(module._codebook).__name__ or _uses_cosine(module) else "euclidean"


def _uses_cosine(module: Any) -> bool:
    return bool(getattr(module, "use_cosine_sim", False) or getattr(module._codebook, "use_cosine_sim", False))


def _peer_dim(module: Any) -> int:
    for name in ("dim", "codebook_dim", "input_dim"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    if isinstance(getattr(module, "project_in", None), nn.Linear):
        return int(module.project_in.in_features)
    layers = getattr(module, "layers", None)
    codebook = getattr(module, "frozen_codebook", None)
    if codebook is not None:
        return int(codebook.shape[-1])
    if layers:
        return _peer_dim(layers[0])
    codebook = module.codebook
    return int(codebook.shape[-1])


def _peer_call(module: Any, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    quantized, indices, *rest = module(z)
    loss = rest[0].sum() if rest else z.new_zeros(())
    if hasattr(module, "rvqs"):  # its groups come first
        indices = indices.movedim(0, -2)
    return quantized, indices, loss


def _peer_decode(module: Any, indices: Tensor, shape: torch.Size) -> Tensor:
    if hasattr(module, "rvqs"):
        indices = indices.movedim(-2, 0)
    for name in ("get_output_from_indices", "indices_to_codes"):
        if hasattr(module, name):
            decoded: Tensor = getattr(module, name)(indices)
            return decoded
    raise TypeError(f"{type(module).__name__} has no method that decodes indices.")


vector_quantize_pytorch = QuantizerAdapter(call=_peer_call, decode=_peer_decode, traits=_peer_traits)
"""For the classes of vector-quantize-pytorch, which return ``(quantized, indices, loss)``."""


def _taming_call(module: Any, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    quantized, loss, (_, _, indices) = module(z)
    return quantized, indices, loss


def _taming_decode(module: Any, indices: Tensor, shape: torch.Size) -> Tensor:
    batch, channels, height, width = shape
    decoded: Tensor = module.get_codebook_entry(indices.flatten(), (batch, height, width, channels))
    return decoded


def _taming_codebook(module: Any) -> Tensor:
    weight: Tensor = (getattr(module, "embedding", None) or module.embed).weight
    return weight


def _taming_traits(module: Any) -> QuantizerTraits:
    size, dim = _taming_codebook(module).shape
    return QuantizerTraits(dim=dim, codebook_size=size, space=(2,), distance="euclidean")


taming = QuantizerAdapter(call=_taming_call, decode=_taming_decode, codebook=_taming_codebook, traits=_taming_traits)
"""For the original's call form, ``z_q, loss, (perplexity, encodings, indices)``, which diffusers shares."""

diffusers = taming
"""The same, under the other name."""
