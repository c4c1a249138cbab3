"""Adapters of quantizers of other packages."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ._quantizer_adapters import QuantizerAdapter
from ._quantizer_traits import QuantizerTraits

_NO_TRIPLE = {
    "rand_projs": "quantized vectors: it returns indices alone",
    "level_shapes": "single tensor of indices: it returns one for each level, in another shape",
}
"""What tells the classes that return something else than quantized vectors, indices and a loss, and what they lack."""


def _peer_traits(module: Any) -> QuantizerTraits:
    """Of vector-quantize-pytorch's classes, by their attributes."""
    for name, lack in _NO_TRIPLE.items():
        if hasattr(module, name):
            raise TypeError(f"{type(module).__name__} gives no {lack}. Pass an adapter and traits of your own.")
    leaves = _leaves(module)
    sizes = [int(leaf.codebook_size) for leaf in leaves if hasattr(leaf, "codebook_size")]
    composite = not hasattr(module, "_codebook") or module.heads > 1
    projects = _projects(module)
    channel_dim, space = _peer_layout(module)
    return QuantizerTraits(
        dim=_peer_dim(module),
        codebook_size=max(sizes, default=None),
        channel_dim=channel_dim,
        space=space,
        index_shape=_peer_index_shape(module),
        stochastic=_is_random(module),
        composite=composite,
        distance=None if composite else _peer_distance(module),
        estimator=_peer_estimator(module),
        trains_codebook=projects or _passes_gradient(leaves[0]),
        learns=_learns(leaves[0]) and not projects,  # what projects back learns from the decoder alone
        starts_from_data=not getattr(getattr(leaves[0], "_codebook", None), "initted", True),
        half=not projects,  # a projection runs in half precision, as all linear layers do under autocast
        batched_loss=not _has_loss_of_batch(leaves[0]),
    )


def _stages(module: Any) -> Any:
    """What its stages are in: the first group, where there are groups, else itself."""
    groups = getattr(module, "rvqs", None)
    return groups[0] if groups else module


def _leaves(module: Any) -> list[Any]:
    """The quantizers of which it is made, itself if of none."""
    parts = getattr(module, "rvqs", None) or getattr(module, "layers", None)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [module]


def _projects(module: Any) -> bool:
    """Whether anything comes before the search: a linear layer, one with a norm, or one of cosines."""
    parts = (module, _stages(module), *_leaves(module))
    return any(not isinstance(getattr(part, "project_in", nn.Identity()), nn.Identity) for part in parts)


def _peer_layout(module: Any) -> tuple[int, tuple[int, ...]]:
    """Where the channels are, and how many dimensions may follow; where they are last, one is what all take."""
    parts = (module, _stages(module), _leaves(module)[0])
    if any(getattr(part, "accept_image_fmap", False) for part in parts):
        return 1, (2,)
    if getattr(parts[-1], "accept_3d_fmap", False):
        return 1, (3,)
    if not getattr(parts[-1], "channel_last", True):
        return 1, (1,)
    flags = [getattr(part, name, False) for part in parts for name in ("channel_first", "is_channel_first")]
    if any(flags) or hasattr(module, "values_per_latent"):  # which has no flag, and always takes them first
        return 1, (0, 1, 2, 3)
    return -1, (1,)


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


def _is_random(module: Any) -> bool:
    """Whether a training forward draws its output or its loss at random; new entries for dead ones are neither."""
    stages, leaf = _stages(module), _leaves(module)[0]
    return (
        _leaves_stages_out(stages)
        or getattr(stages, "diveq", False)  # which moves the output along a noisy direction
        or _samples_codes(leaf)
        or (getattr(leaf, "directional_reparam", False) and leaf.directional_reparam_variance > 0)
        or _samples_entries_for_loss(leaf)
        or getattr(leaf, "noise_dropout", 0.0) > 0
        or getattr(leaf, "frac_per_sample_entropy", 1.0) < 1  # of the vectors, for the loss
        or getattr(leaf, "quantize_rate", 1.0) < 1
        or any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules())  # in a layer that was given
    )


def _leaves_stages_out(stages: Any) -> bool:
    """Whether the number of stages that are used is drawn, and from more than one number."""
    if not getattr(stages, "quantize_dropout", False):
        return False
    count, multiple = int(stages.num_quantizers), int(stages.quantize_dropout_multiple_of)
    least = range(int(stages.quantize_dropout_cutoff_index) + 1, count + 1)
    return len({min(-(-used // multiple) * multiple, count) for used in least}) > 1


def _samples_codes(leaf: Any) -> bool:
    book = getattr(leaf, "_codebook", None)
    settings = getattr(getattr(book, "gumbel_sample", None), "keywords", {})  # a partial of the function
    return bool(settings.get("stochastic")) and (getattr(book, "sample_codebook_temp", None) or 0.0) > 0


def _samples_entries_for_loss(leaf: Any) -> bool:
    most = getattr(leaf, "orthogonal_reg_max_codes", None)
    return bool(getattr(leaf, "has_codebook_orthogonal_loss", False)) and most is not None and most < leaf.codebook_size


def _peer_estimator(module: Any) -> Literal["other", "none"]:
    """By default the rotation trick, or a gradient through a bound."""
    routed = getattr(_leaves(module)[0], "route_gradients_to_input", True) or getattr(_stages(module), "diveq", False)
    return "other" if routed else "none"


def _passes_gradient(leaf: Any) -> bool:
    """Whether the output's gradient reaches parameters past the estimator, which as a rule detaches the entries."""
    learnable = getattr(getattr(leaf, "_codebook", None), "learnable_codebook", False)
    detached = getattr(leaf, "route_gradients_to_input", True) and not getattr(leaf, "directional_reparam", False)
    activation = getattr(leaf, "activation", nn.Identity())  # in place of the identity in the backward
    return bool(learnable and not detached) or any(True for _ in activation.parameters())


def _learns(leaf: Any) -> bool:
    """Whether there are entries that follow the data: not on a grid, not frozen, not moved by the decoder alone."""
    book = getattr(leaf, "_codebook", None)
    if book is None:
        return hasattr(leaf, "frozen_codebook")  # which is transformed by what learns
    by_loss = leaf.learnable_codebook and getattr(leaf, "has_commitment_loss", True)
    moved = book.ema_update or by_loss or getattr(leaf, "in_place_codebook_optimizer", None)
    return bool(moved) and not getattr(leaf, "freeze_codebook", False)


def _has_loss_of_batch(leaf: Any) -> bool:
    """Whether the loss has an entropy, or statistics, of all vectors or of the entries that they use."""
    active = getattr(leaf, "has_codebook_orthogonal_loss", False) and leaf.orthogonal_reg_active_codes_only
    entropy = getattr(leaf, "has_codebook_diversity_loss", False) or getattr(leaf, "entropy_loss_weight", 0.0) != 0
    return bool(active or entropy or hasattr(leaf, "vector_norm"))


def _peer_dim(module: Any) -> int:
    """Of what goes in, which may be projected to the codebook's number of channels."""
    if isinstance(getattr(module, "dim", None), int):
        return int(module.dim)
    project_in, layers = getattr(module, "project_in", None), getattr(module, "layers", None)
    if isinstance(project_in, nn.Linear):
        return project_in.in_features
    if layers:
        return _peer_dim(layers[0])
    with torch.no_grad():  # it may be a transformed one
        codebook = getattr(module, "codebook", None)
    if isinstance(codebook, Tensor):
        return codebook.shape[-1]
    raise TypeError(f"{type(module).__name__} does not tell its number of channels. Pass traits of your own.")


def _peer_call(module: Any, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    answer = module(z)
    if not (isinstance(answer, tuple) and isinstance(answer[0], Tensor) and isinstance(answer[1], Tensor)):
        raise TypeError(
            f"{type(module).__name__} gives no quantized vectors with indices. Pass an adapter of your own."
        )
    quantized, indices, *rest = answer
    loss = rest[0].sum() if rest else z.new_zeros(())
    grouped = hasattr(module, "rvqs")
    if getattr(_stages(module), "is_channel_first", False):  # its stages are where the channels were
        indices = indices.movedim(1 + grouped, -1)
    if grouped:  # its groups come first
        indices = indices.movedim(0, -2)
    return quantized, indices, loss


def _peer_decode(module: Any, indices: Tensor, shape: torch.Size) -> Tensor:
    """Of indices in the order in which the forward gave them."""
    grouped = hasattr(module, "rvqs")
    if grouped:
        indices = indices.movedim(-2, 0)
    if getattr(_stages(module), "is_channel_first", False):
        indices = indices.movedim(-1, 1 + grouped)
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
