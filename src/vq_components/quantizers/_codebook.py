"""A codebook and its statistics: the state of every quantizer that looks entries up."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _distributed
from .._operators import operator
from ..functional import nearest_code
from ._revival import DeadCodeRevival, check_revival
from ._statistics import (
    AverageState,
    CodebookState,
    UpdateRule,
    apply_pending_,
    as_entries,
    count_,
    lengths,
    look_up,
    start_,
)

_HALF = (torch.float16, torch.bfloat16)
# Buffers that are not 0 where a file holds nothing but a trained codebook.
_STARTED_FROM_A_FILE: dict[str, float] = {"started": 1, "usage": 1, "candidate_keys": torch.inf}


class Codebook(nn.Module):
    """Entries, pending statistics and what an update makes of them.

    A training look-up never changes the entries that it uses, except for the first one of a codebook that starts from
    data; it only adds to pending statistics, which an update applies.

    Args:
        size: number of entries ``K``.
        dim: their width ``D``.
        trained_by: ``"gradient"``, then the entries are a parameter; or ``"average"``, then they are a buffer.
        init: ``"data"`` or ``"uniform"``.
        revival: settings, or None to revive nothing.
        decay, eps: of the moving averages.
        unit_norm: whether entries are the directions of the rows of ``weight``.

    Attributes:
        stage: updates that the start from data waits for, so that codebooks that come one after the other do not start
            from what the one before has just left; it sets apart their draws as well.
    """

    weight: Tensor
    # Of every codebook, see CodebookState:
    started: Tensor
    updates: Tensor
    usage: Tensor
    pending_vectors: Tensor
    pending_counts: Tensor
    pending_distances: Tensor
    candidate_keys: Tensor
    candidates: Tensor
    update_is_manual: Tensor
    # Of one that is trained by averages, see AverageState:
    cluster_size: Tensor
    embed_avg: Tensor
    pending_sums: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        trained_by: Literal["gradient", "average"],
        init: Literal["data", "uniform"],
        revival: DeadCodeRevival | None,
        decay: float = 0.9,
        eps: float = 1e-5,
        unit_norm: bool = False,
    ) -> None:
        super().__init__()
        self._was_sharded = False
        if size < 1 or dim < 1:
            raise ValueError(
                f"A codebook needs at least one entry and one channel, "
                f"but got codebook_size={size}, codebook_dim={dim}."
            )
        if init not in ("data", "uniform"):
            raise ValueError(f"init must be 'data' or 'uniform', but got {init!r}.")
        check_revival(revival)
        self.revival = revival
        self.decay = decay
        self.eps = eps
        self.unit_norm = unit_norm
        self.stage = 0
        self.starts_from_data = init == "data"
        # At least float32, as in _apply, whatever the default is.
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        weight = as_entries(torch.empty(size, dim, dtype=dtype).uniform_(-1 / size, 1 / size), unit_norm=unit_norm)
        if trained_by == "gradient":
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
            self.register_buffer("cluster_size", torch.zeros(size, dtype=dtype))
            self.register_buffer("embed_avg", torch.zeros(size, dim, dtype=dtype))
            self.register_buffer("pending_sums", torch.zeros(size, dim, dtype=dtype))
        self.register_buffer("started", torch.tensor(init == "uniform"))
        self.register_buffer("updates", torch.tensor(0))
        self.register_buffer("usage", torch.ones(size, dtype=dtype))
        self.register_buffer("pending_vectors", torch.tensor(0))
        self.register_buffer("pending_counts", torch.zeros(size, dtype=dtype))
        self.register_buffer("pending_distances", torch.zeros(size, dtype=dtype))
        self.register_buffer("candidate_keys", torch.full((size,), torch.inf, dtype=dtype))
        self.register_buffer("candidates", torch.zeros(size, dim, dtype=dtype))
        # Whether update_() is in the caller's hands: saved, so that a resumed run goes on in the same way, and kept as
        # a plain bool as well, so that no forward has to read it from the device.
        self.register_buffer("update_is_manual", torch.tensor(False))
        self._is_manual = False

    def forward(self, z: Tensor, live: Tensor, *, counts: bool, apply_first: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Indices ``(N,)`` and entries ``(N, D)`` nearest to ``z``, and their distances ``(N,)``.

        Vectors that are not live get index 0 and distance NaN. A gradient of the entries reaches those rows of the
        codebook; the distances have none. If ``counts``, also counts the live vectors.
        """
        if counts:
            indices, distances = self._count_and_look_up(z, live, apply_first=apply_first)
            return indices, self.entries(indices), distances
        indices = self.look_up(z, live)
        entries = self.entries(indices)
        return indices, entries, lengths(entries.detach().to(z.dtype) - z, live)

    def look_up(self, z: Tensor, live: Tensor) -> Tensor:
        """Indices ``(N,)`` of the entries nearest to ``z``, 0 where it is not live; counts nothing."""
        return torch.where(live, nearest_code(z, self.all_entries()), 0)

    def entries(self, indices: Tensor) -> Tensor:
        """The entries ``(N, D)`` at ``indices`` ``(N,)``; a gradient reaches those rows of the codebook."""
        return as_entries(F.embedding(indices, self.weight), unit_norm=self.unit_norm)

    def all_entries(self) -> Tensor:
        """The entries, ``(K, D)``: the weight itself, or its rows' directions."""
        return as_entries(self.weight, unit_norm=self.unit_norm)

    # Without gradients, so that the compiler changes a parameter in place, as it does buffers: a compiled checkpoint
    # that runs again finds the codebook that its forward used, not a copy from before that forward's update.
    @torch.no_grad()
    def _count_and_look_up(self, z: Tensor, live: Tensor, *, apply_first: bool) -> tuple[Tensor, Tensor]:
        self._check_whole()
        average = self._average_state()
        found: tuple[Tensor, Tensor] = _count_operator(
            z,
            live,
            list(self._state()),
            [] if average is None else list(average),
            list(self._rule()),
            apply_first and not self._is_manual,
            self.starts_from_data,
        )
        return found

    @torch.no_grad()
    def apply_pending_(self) -> None:
        """Applies what is pending as one update."""
        self._check_whole()
        apply_pending_(self._state(), self._average_state(), self._rule())

    def update_manually_(self, *, apply: bool) -> None:
        """Applies what is pending, and leaves all later updates to the caller."""
        self._is_manual = True
        self.update_is_manual.fill_(True)
        if apply:
            self.apply_pending_()

    @torch.no_grad()
    def set_(self, weight: Tensor) -> None:
        """Replaces all entries and forgets all statistics; the codebook counts as started."""
        self.weight.copy_(as_entries(weight.to(self.weight), unit_norm=self.unit_norm))
        self.started.fill_(True)
        for name in ("updates", "pending_vectors", "pending_counts", "pending_distances"):
            getattr(self, name).zero_()
        self.usage.fill_(1)
        self.candidate_keys.fill_(torch.inf)
        if "embed_avg" in self._buffers:
            self.cluster_size.fill_(1)
            self.embed_avg.copy_(self.weight)
            self.pending_sums.zero_()

    def __setattr__(self, name: str, value: Any) -> None:
        # FSDP2 lends whole entries to a forward, and forgets what has been written into them: remember that it did.
        if name == "weight" and _distributed.is_sharded(value):
            self._was_sharded = True
        super().__setattr__(name, value)

    def _check_whole(self) -> None:
        if self._was_sharded or _distributed.is_sharded(self.weight):
            raise TypeError(
                "A codebook that trains must be whole on every process, but its entries are sharded. Keep them out: "
                "fully_shard(model, ignored_params={quantizer.embedding.weight}), and average their gradient over the "
                "processes yourself; or use EMAVectorQuantizer, whose entries are a buffer and are never sharded."
            )

    def _state(self) -> CodebookState:
        tensors = (getattr(self, name) for name in CodebookState._fields[1:])
        return CodebookState(self.weight.detach(), *tensors)

    def _average_state(self) -> AverageState | None:
        if "embed_avg" not in self._buffers:
            return None
        return AverageState(self.cluster_size, self.embed_avg, self.pending_sums)

    def _rule(self) -> UpdateRule:
        revival = (0.0, 0.0) if self.revival is None else (self.revival.threshold, self.revival.decay)
        return UpdateRule(self.decay, self.eps, *revival, float(self.unit_norm), float(self.stage))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Codebook":
        """Moves the codebook, but keeps it in at least float32: averages and distances need the precision."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.is_floating_point() and moved.dtype in _HALF:
                return tensor.to(moved.device)
            return moved

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Loads; a file of other code, which knows no ``started``, holds a codebook that has started."""
        for name in ("weight", *self._buffers):  # with assign=True they would stay in half precision
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.dtype in _HALF:
                state_dict[prefix + name] = value.float()
        weight = state_dict.get(prefix + "weight")
        if weight is not None and prefix + "started" not in state_dict:
            for name, buffer in self._buffers.items():
                if buffer is not None and name not in ("weight", "cluster_size", "embed_avg"):
                    state_dict[prefix + name] = torch.full_like(buffer, _STARTED_FROM_A_FILE.get(name, 0))
            if "embed_avg" in self._buffers:
                # The averages that fit the entries: those of some code do not, and would throw unused entries far off.
                size = state_dict.get(prefix + "cluster_size", torch.ones(len(weight), device=weight.device))
                state_dict[prefix + "cluster_size"] = size
                entries = as_entries(weight, unit_norm=self.unit_norm)
                state_dict[prefix + "embed_avg"] = entries * size[:, None].to(weight.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if not self.update_is_manual.is_meta:
            self._is_manual = bool(self.update_is_manual)

    def _trained_by(self) -> Literal["gradient", "average"]:
        return "average" if "embed_avg" in self._buffers else "gradient"

    def extra_repr(self) -> str:
        """Shape and settings for ``repr``."""
        size, dim = self.weight.shape
        return f"{size}, {dim}, trained_by={self._trained_by()!r}, revival={self.revival}"


def _fake_count(z: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape[0], dtype=torch.int64), z.new_empty(z.shape[0])


# Applying, counting and looking up are one opaque operator, for two reasons. Inside a backward, that is when activation
# checkpointing runs a forward again, it must do nothing but look up; and the compiler must not see its loops.
@operator(
    "count_and_look_up(Tensor z, Tensor live, Tensor(a!)[] state, Tensor(b!)[] average, float[] rule, "
    "bool apply_first, bool starts_from_data) -> (Tensor, Tensor)",
    fake=_fake_count,
)
def _count_operator(
    z: Tensor,
    live: Tensor,
    state: list[Tensor],
    average: list[Tensor],
    rule: list[float],
    apply_first: bool,
    starts_from_data: bool,
) -> tuple[Tensor, Tensor]:
    codebook, update_rule = CodebookState(*state), UpdateRule(*rule)
    if torch._C._current_graph_task_id() != -1:  # inside a backward
        return look_up(codebook, update_rule, z, live)
    averages = AverageState(*average) if average else None
    if apply_first:
        apply_pending_(codebook, averages, update_rule)
    if starts_from_data:
        start_(codebook, update_rule, z, live)
    indices, distances = look_up(codebook, update_rule, z, live)
    count_(codebook, averages, update_rule, z, live, indices, distances)
    return indices, distances
