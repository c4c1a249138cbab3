"""The arithmetic of the two-phase codebook: training forwards count, updates apply what was counted.

Everything works in place on a :class:`CodebookState` (and an :class:`AverageState` for codebooks that learn by moving
averages), never branches on a value that lives on an accelerator, and gives the same result on ``n`` processes as on
one process with the joined batch. Which vectors become candidates is decided by hashes of positions: a rule that does
not depend on how a batch is split into processes or micro-batches.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _distributed
from ..functional._search import can_choose, search


class CodebookState(NamedTuple):
    """Buffers of every codebook; shapes with ``K`` entries of width ``D``."""

    weight: Tensor  # (K, D) the entries
    started: Tensor  # () bool: False until the entries have been taken from data
    updates: Tensor  # () int64: updates applied so far
    usage: Tensor  # (K,) moving average of what an entry is good for, in fair shares
    pending_vectors: Tensor  # () int64: live vectors seen since the last update
    pending_counts: Tensor  # (K,) live vectors of each entry since the last update
    pending_distances: Tensor  # (K,) sum of their distances from the entry
    candidate_keys: Tensor  # (K,) priority of each slot's candidate, the smallest wins; inf: no candidate
    candidates: Tensor  # (K, D) one vector per slot for entries that must move


class AverageState(NamedTuple):
    """Buffers of a codebook that learns by exponential moving averages."""

    cluster_size: Tensor  # (K,) average of the counts
    embed_avg: Tensor  # (K, D) average of the sums
    pending_sums: Tensor  # (K, D) sums of live vectors since the last update


class UpdateRule(NamedTuple):
    """Settings of an update."""

    average_decay: float
    average_eps: float
    revival_threshold: float
    revival_decay: float
    unit_norm: float = 0.0  # 1: entries stand for their directions, see ``as_entries``
    stage: float = 0.0  # place among codebooks that see the same positions: sets apart their draws and starts


def apply_pending_(state: CodebookState, average: AverageState | None, rule: UpdateRule) -> None:
    """One update from what is pending, after which nothing is pending. Without a live vector nothing changes."""
    total = state.pending_counts.sum()
    any_live = total > 0
    if average is not None:
        weight = any_live.to(total.dtype) * (1 - rule.average_decay)
        average.cluster_size.lerp_(state.pending_counts, weight)
        average.embed_avg.lerp_(average.pending_sums, weight)
        mean = (average.embed_avg + rule.average_eps * state.weight) / (average.cluster_size + rule.average_eps)[
            :, None
        ]
        mean = as_entries(mean, unit_norm=rule.unit_norm > 0)
        state.weight.copy_(torch.where((state.pending_counts > 0)[:, None], mean, state.weight))
        average.pending_sums.zero_()
    if rule.revival_threshold > 0:
        # An average over vectors: as many vectors as entries make one step, fewer a part of it.
        seen = (total / state.weight.shape[0]).clamp(max=1)
        state.usage.lerp_(_shares(state), 1 - rule.revival_decay**seen)
        _revive_(state, average, (state.usage < rule.revival_threshold) & any_live)
    state.updates.add_(any_live)
    state.pending_vectors.zero_()
    state.pending_counts.zero_()
    state.pending_distances.zero_()
    state.candidate_keys.fill_(torch.inf)


def _shares(state: CodebookState) -> Tensor:
    """The larger of each entry's shares of the vectors and of the distances, where 1 is fair."""
    counts, distances = state.pending_counts, state.pending_distances
    smallest = torch.finfo(distances.dtype).tiny
    return len(counts) * torch.maximum(
        counts / counts.sum().clamp(min=1), distances / distances.sum().clamp(min=smallest)
    )


def _revive_(state: CodebookState, average: AverageState | None, dead: Tensor) -> None:
    """Moves dead entries to the candidates, the best candidates first."""
    entries = dead.argsort(descending=True, stable=True)  # the dead ones first
    slots = state.candidate_keys.argsort(stable=True)
    revived = dead[entries] & (state.candidate_keys[slots] < torch.inf)
    if can_choose(revived):  # the same, without the work on entries that stay
        moved = revived.nonzero()[:, 0]
        entries, slots, revived = entries[moved], slots[moved], revived[moved]
    state.weight[entries] = torch.where(revived[:, None], state.candidates[slots], state.weight[entries])
    state.usage[entries] = torch.where(revived, 1, state.usage[entries])
    if average is not None:  # without a past, the entry's first own vectors decide where it goes
        average.cluster_size[entries] = torch.where(revived, 0, average.cluster_size[entries])
        average.embed_avg[entries] = torch.where(revived[:, None], 0, average.embed_avg[entries])


def start_(state: CodebookState, rule: UpdateRule, z: Tensor, live: Tensor) -> None:
    """Takes the entries from the vectors of a batch, unless they have been taken before or none is live and not zero.

    With fewer vectors than entries the rest lies between pairs of vectors, a quarter of the way. Stage ``n`` waits for
    ``n`` updates: the stage before it starts from vectors of its batch, and leaves nothing of these, or little.
    """
    if can_choose(state.started) and bool(state.started):
        return  # the same as below, without the work
    # Zero is what earlier stages leave of the vectors that they stand for exactly.
    keys, winners = _draw_candidates(state, rule, z, live, (z != 0).any(dim=1).to(z.dtype))
    vectors, owners = _sum_over_processes(_winning_vectors(state, z, winners))
    pool = (vectors / owners.clamp(min=1)[:, None])[keys.argsort(stable=True)]
    count = (keys < torch.inf).sum()
    entry = torch.arange(len(keys), device=z.device)
    lap = entry // count.clamp(min=1)
    first = pool[entry % count.clamp(min=1)]
    second = pool[(entry + lap) % count.clamp(min=1)]
    start = torch.where((lap == 0)[:, None], first, torch.lerp(first, second, 0.25))
    start = as_entries(start, unit_norm=rule.unit_norm > 0)
    begins = ~state.started & (count > 0) & (state.updates >= rule.stage)
    state.weight.copy_(torch.where(begins, start, state.weight))
    state.started.logical_or_(begins)


def count_(
    state: CodebookState,
    average: AverageState | None,
    rule: UpdateRule,
    z: Tensor,
    live: Tensor,
    indices: Tensor,
    distances: Tensor,
) -> None:
    """Adds the live vectors of a batch, of all processes, to what is pending. They must be finite."""
    size, dim = state.weight.shape
    dtype = state.weight.dtype
    z, weight = z.to(dtype), live.to(dtype)
    parts = [torch.zeros(size, dtype=dtype, device=z.device).index_add_(0, indices, weight)]
    if average is not None:
        vectors = torch.where(live[:, None], z, 0)
        parts.append(torch.zeros(size, dim, dtype=dtype, device=z.device).index_add_(0, indices, vectors))
    if rule.revival_threshold > 0:
        distance = torch.where(live, distances, 0).to(dtype)
        parts.append(torch.zeros(size, dtype=dtype, device=z.device).index_add_(0, indices, distance))
        keys, winners = _draw_candidates(state, rule, z, live, distance.square())
        alone = can_choose(z) and _distributed.world_size() == 1
        if not alone:
            parts += _winning_vectors(state, z, winners)
    counts, *rest = _sum_over_processes(parts)
    state.pending_counts.add_(counts)
    if average is not None:
        average.pending_sums.add_(rest.pop(0))
    if rule.revival_threshold > 0:
        state.pending_distances.add_(rest.pop(0))
        better = keys < state.candidate_keys
        if alone:  # the same, without the work on the slots that keep their candidate
            slots = better.nonzero()[:, 0]
            state.candidates[slots] = z.index_select(0, winners[slots])
        else:
            candidates = rest[0] / rest[1].clamp(min=1)[:, None]
            state.candidates.copy_(torch.where(better[:, None], candidates, state.candidates))
        state.candidate_keys.copy_(torch.where(better, keys, state.candidate_keys))
    state.pending_vectors.add_(counts.sum().long())


def look_up(state: CodebookState, rule: UpdateRule, z: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """Indices ``(N,)`` of the nearest entries, 0 where ``z`` is not live, and their distances, NaN there."""
    dtype = torch.promote_types(z.dtype, state.weight.dtype)
    weight = as_entries(state.weight, unit_norm=rule.unit_norm > 0)
    indices = torch.where(live, search(z.to(dtype), weight.to(dtype)), 0)
    return indices, lengths(weight.index_select(0, indices).to(z.dtype).sub_(z), live)


def lengths(vectors: Tensor, live: Tensor) -> Tensor:
    """Of vectors ``(N, D)``; NaN where they are not live."""
    return torch.where(live, torch.linalg.vector_norm(vectors, dim=1), torch.nan)


def as_entries(weight: Tensor, *, unit_norm: bool) -> Tensor:
    """What rows ``(N, D)`` of a codebook's weight stand for: themselves, or their directions."""
    return unit(weight) if unit_norm else weight


def unit(vectors: Tensor) -> Tensor:
    """Vectors ``(N, D)`` at length 1; shorter than 1e-6, they keep their direction and a bounded gradient."""
    return F.normalize(vectors, dim=1, eps=1e-6)


def _draw_candidates(
    state: CodebookState, rule: UpdateRule, z: Tensor, live: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """At most one vector per slot: keys ``(K,)``, and its row in ``z``, -1 if it is another process's, or none.

    Live vectors are numbered through all processes, and every number belongs to one slot. Among a slot's vectors the
    smallest key wins, where the key is exponentially distributed with rate ``weight`` (Efraimidis & Spirakis, 2006):
    a draw in proportion to the weights, which can be merged over processes and micro-batches by taking the minimum.
    """
    size = len(state.weight)
    dtype = state.weight.dtype
    row = torch.arange(z.shape[0], device=z.device)
    position = state.pending_vectors + _live_before(live) + live.cumsum(0) - 1
    slot = (position + state.updates * 40503).clamp(min=0) % size
    exponential = -torch.log(_hash_to_unit(position, state.updates + int(rule.stage) * 0x10001))
    key = torch.where(live & (weight > 0), exponential / weight, torch.inf).to(dtype)
    keys = torch.full((size,), torch.inf, dtype=dtype, device=z.device).scatter_reduce_(0, slot, key, "amin")
    wins = (key == keys[slot]) & (key < torch.inf)
    winners = torch.full((size,), -1, device=z.device).scatter_reduce_(0, slot, torch.where(wins, row, -1), "amax")
    own_keys = keys.clone()
    _distributed.all_reduce_min_(keys)
    return keys, torch.where(own_keys == keys, winners, -1)


def _winning_vectors(state: CodebookState, z: Tensor, winners: Tensor) -> list[Tensor]:
    """Candidates ``(K, D)`` and who has one ``(K,)``, zero where it is another process's: to be summed over all."""
    owners = winners >= 0
    # One more row, so that an empty batch can be indexed too.
    rows = torch.cat([z.to(state.weight.dtype), torch.zeros_like(state.weight[:1])])
    return [torch.where(owners[:, None], rows[winners], 0), owners.to(rows.dtype)]


def _live_before(live: Tensor) -> Tensor:
    """Number of live vectors on the processes before this one."""
    counts = torch.zeros(_distributed.world_size(), dtype=torch.int64, device=live.device)
    counts[_distributed.rank()] = live.sum()
    _distributed.all_reduce_sum_(counts)
    return counts[: _distributed.rank()].sum()


def _sum_over_processes(parts: list[Tensor]) -> list[Tensor]:
    """Each tensor summed over all processes, in one message."""
    if _distributed.world_size() == 1:
        return parts
    message = torch.cat([part.flatten() for part in parts])
    _distributed.all_reduce_sum_(message)
    pieces = torch.split(message, [part.numel() for part in parts])
    return [piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)]


def _hash_to_unit(position: Tensor, seed: Tensor) -> Tensor:
    """Numbers in (0, 1) that look random and depend on ``position`` and ``seed`` alone, on every device.

    Three rounds of multiply and shift on 32 bits (the finalizer of Appleby's MurmurHash3), in int64 arithmetic.
    """
    mask = 0xFFFFFFFF
    bits = (position * 0x9E3779B1 + seed * 0x7FEB352D + 1) & mask
    for factor in (0x85EBCA6B, 0xC2B2AE35):
        bits = bits ^ (bits >> 16)
        bits = (bits * factor) & mask
    bits = bits ^ (bits >> 16)
    return ((bits.to(torch.float32) + 0.5) / 2**32).clamp(max=1 - 2**-24)  # which the largest would be rounded up to
