"""Adapters of quantizers of other packages."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ._quantizer_adapters import QuantizerAdapter
from ._quantizer_traits import QuantizerTraits


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
