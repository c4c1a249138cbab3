"""How a codebook is doing on a window of latents, in numbers and in plain language."""

import contextlib
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from .. import _distributed
from ..functional._codes import count_codes, perplexity_of_counts, usage_of_counts
from ._codebook import Codebook
from ._diagnosis import Findings, count_duplicates, find_reasons
from ._terms import measurable_vectors

if TYPE_CHECKING:
    from ._base import AbstractQuantizer, QuantizerOutput

# What one call of a quantizer was given, as it compares that with entries, which of it counts, and its indices.
_Call = tuple[Tensor, Tensor, Tensor]
NAN3 = (math.nan, math.nan, math.nan)


class CodebookHealth(NamedTuple):
    """What :meth:`AbstractQuantizer.health` returns; ``print`` it for a summary.

    The shapes are those of a quantizer with one index per vector. In a composite each tensor has the quantizer's
    ``index_shape`` in front: ``(Q,)`` for ``Q`` stages, ``(G,)`` for ``G`` groups, ``(G, Q)`` for groups of stages.
    Where no entries are learned their norms are NaN and ``duplicates`` 0; where they do not lie among the vectors, as
    those of a ``GumbelQuantizer``, ``error`` is NaN.
    """

    counts: Tensor
    """How many vectors of the window each entry stands for, ``(K,)`` ``int64``."""
    usage: Tensor
    """Share of entries that stand for at least one vector."""
    perplexity: Tensor
    """Exponential of the entropy of the shares ``counts / sum(counts)``: how many entries are in effective use."""
    dead: Tensor
    """Number of entries that stand for no vector."""
    duplicates: Tensor
    """Number of entries that have another entry, numerically, in the same place."""
    code_norms: Tensor
    """Smallest, mean and largest norm of the entries, ``(3,)``."""
    latent_norms: Tensor
    """Smallest, mean and largest norm of the vectors that were looked up, ``(3,)``."""
    error: Tensor
    """Mean squared distance of a vector to its entry, in shares of the vectors' variance; a single entry can do 1."""
    reasons: tuple[str, ...]
    """One sentence for each thing that is wrong; empty if nothing is. In a composite it begins with the part."""

    def __str__(self) -> str:
        """A line of numbers for each stage, in a composite after its place in the fields, then the reasons."""
        lines = []
        places = list(itertools.product(*(range(count) for count in self.usage.shape)))
        for stage, counts in enumerate(self.counts.view(-1, self.counts.shape[-1])):
            low, mean, high = self.code_norms.view(-1, 3)[stage].tolist()
            nearest, usual, farthest = self.latent_norms.view(-1, 3)[stage].tolist()
            place = f"{list(places[stage])} " if places[stage] else ""
            lines.append(
                f"{place}{int(counts.sum())} vectors, {len(counts)} entries: "
                f"usage {float(self.usage.flatten()[stage]):.1%}, "
                f"perplexity {float(self.perplexity.flatten()[stage]):.1f}, "
                f"{int(self.dead.flatten()[stage])} dead"
            )
            if not math.isnan(mean):  # else no entries are known, see above
                lines[-1] += f", {int(self.duplicates.flatten()[stage])} duplicates"
                lines[-1] += f", norms of entries {low:.3g} / {mean:.3g} / {high:.3g}"
            if not math.isnan(usual):
                lines[-1] += f", of latents {nearest:.3g} / {usual:.3g} / {farthest:.3g}"
            if not math.isnan(error := float(self.error.flatten()[stage])):
                lines[-1] += f", error {error:.3g} of the variance"
        return "\n".join([*lines, *(f"- {reason}" for reason in self.reasons or ("nothing is wrong",))])


class _Window:
    """Sums over the vectors that one stage has looked up, and its entries if they are learned."""

    def __init__(self, size: int, part: "AbstractQuantizer | None", device: torch.device) -> None:
        self.entries = torch.zeros(0, 0, device=device)
        if part is not None and part._entries_are is not None:
            self.entries = cast(Tensor, part.codebook).detach()
        self.has_error = part is not None and part._entries_are in ("nearest", "among")
        # Double precision for variances, where the device has it.
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.counts = torch.zeros(size, dtype=torch.int64, device=device)
        self.sums = torch.zeros(4, dtype=self.dtype, device=device)  # number, norms, squared norms, squared errors
        self.total = torch.zeros(part.dim if part is not None else 0, dtype=self.dtype, device=device)
        self.bounds = torch.full((2,), torch.inf, dtype=self.dtype, device=device)  # smallest norm, minus the largest

    def look(self, z: Tensor | None, live: Tensor, indices: Tensor) -> None:
        """Takes in the vectors that stand for ``indices``, or, where these are not known, how many they are."""
        self.counts += count_codes(indices[live], len(self.counts))
        if z is None:
            return
        z = z[live].to(self.dtype)
        norms = z.norm(dim=1)
        errors = z - self.entries[indices[live]].to(self.dtype) if self.has_error else z.new_zeros(())
        self.sums += torch.stack([live.sum(), norms.sum(), z.square().sum(), errors.square().sum()])
        self.total += z.sum(dim=0)
        if len(z):
            self.bounds = torch.minimum(self.bounds, torch.stack([norms.min(), -norms.max()]))

    def reduce(self) -> None:
        """Sums everything over the processes."""
        message = torch.cat([self.counts.to(self.dtype), self.sums, self.total])
        _distributed.all_reduce_sum_(message)
        _distributed.all_reduce_min_(self.bounds)
        counts, self.sums, self.total = torch.split(message, [len(self.counts), 4, len(self.total)])
        self.counts = counts.long()

    def findings(self, **known: Any) -> Findings:
        """What the sums say, in plain numbers."""
        number, norms, squares, errors = self.sums.tolist()
        finite = self.entries[self.entries.isfinite().all(dim=1)]
        code_norms = finite.to(self.dtype).norm(dim=1)
        has_codes, has_latents = len(finite) > 0, number > 0
        mean_square = float((self.total / max(number, 1)).square().sum())
        spread = max(squares / number - mean_square, 0.0) ** 0.5 if has_latents else math.nan
        return Findings(
            counts=self.counts,
            code_norms=(float(code_norms.min()), float(code_norms.mean()), float(code_norms.max()))
            if has_codes
            else NAN3,
            latent_norms=(float(self.bounds[0]), norms / number, float(-self.bounds[1])) if has_latents else NAN3,
            spread=spread,
            error=(errors / number) ** 0.5 if has_latents and self.has_error else math.nan,
            duplicates=count_duplicates(finite, spread),
            broken=len(self.entries) - len(finite),
            **known,
        )


def codebook_health(
    quantizer: "AbstractQuantizer", latents: Tensor | Iterable[Tensor], mask: Tensor | Iterable[Tensor] | None
) -> CodebookHealth:
    """What :meth:`AbstractQuantizer.health` says."""
    places = _places(quantizer)
    windows, dirty = _watch(quantizer, [part for _, part in places], _pair(latents, mask))
    _distributed.all_reduce_sum_(dirty)
    for window in windows:
        window.reduce()
    codebooks = [_codebook_of(part) for _, part in places]
    stages = [
        window.findings(
            waiting=codebook is not None and not bool(codebook.started),
            revives=None if codebook is None else codebook.revival is not None,
            more_use="" if part is None else part._more_use,
            by_distance=part is not None and part._entries_are == "nearest",
            of_rest=any(place.startswith("stage ") and place != "stage 0" for place in name.split(", ")),
            not_finite=int(dirty),
        )
        for window, codebook, (name, part) in zip(windows, codebooks, places, strict=True)
    ]
    reasons = [
        f"{name}: {reason}" if name else reason
        for stage, (name, _) in zip(stages, places, strict=True)
        for reason in find_reasons(stage)
    ]

    def gather(values: Iterable[Any]) -> Tensor:
        rows = [torch.as_tensor(value, device=windows[0].counts.device) for value in values]
        rows = [row.float() if row.is_floating_point() else row for row in rows]
        return torch.stack(rows).reshape(quantizer.index_shape + rows[0].shape)

    return CodebookHealth(
        counts=gather(stage.counts for stage in stages),
        usage=gather(usage_of_counts(stage.counts) for stage in stages),
        perplexity=gather(perplexity_of_counts(stage.counts) for stage in stages),
        dead=gather((stage.counts == 0).sum() for stage in stages),
        duplicates=gather(stage.duplicates for stage in stages),
        code_norms=gather(stage.code_norms for stage in stages),
        latent_norms=gather(stage.latent_norms for stage in stages),
        error=gather(stage.relative_error for stage in stages),
        reasons=tuple(dict.fromkeys(reasons)),
    )


def _places(quantizer: "AbstractQuantizer") -> list[tuple[str, "AbstractQuantizer | None"]]:
    """Name of each stage, where there are several, and its quantizer, if it is known, in the order of the indices."""
    parts, count = list(quantizer._parts()), math.prod(quantizer.index_shape)
    if not parts and not quantizer.index_shape:
        return [("", quantizer)]
    if len(parts) == 1 and parts[0].index_shape == quantizer.index_shape:
        return _places(parts[0])
    kind = getattr(quantizer, "_part_name", "stage")
    if parts and sum(math.prod(part.index_shape) for part in parts) == count:
        return [
            (f"{kind} {number}" + (f", {name}" if name else ""), found)
            for number, part in enumerate(parts)
            for name, found in _places(part)
        ]
    # One that is looked up again and again, or nothing that is known.
    again = len(parts) == 1 and not parts[0].index_shape
    return [(f"stage {number}" if count > 1 else "", parts[0] if again else None) for number in range(count)]


def _codebook_of(part: "AbstractQuantizer | None") -> Codebook | None:
    """The codebook of one stage, if it has one that starts from data and is revived."""
    modules = [] if part is None else part.modules()
    return next((module for module in modules if isinstance(module, Codebook)), None)


@contextlib.contextmanager
def _evaluating(quantizer: "AbstractQuantizer") -> Iterator[None]:
    """Evaluation mode, and back, module by module."""
    modes = {module: module.training for module in quantizer.modules()}
    quantizer.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def _listening(part: "AbstractQuantizer", calls: list[_Call]) -> Iterator[None]:
    """Keeps what the quantizer is given, by itself or by one around it, and the indices that it answers."""
    quantize = part._quantize

    def listen(z: Tensor, live: Tensor) -> "QuantizerOutput":
        out = quantize(z, live)
        calls.append((part._compared(z), measurable_vectors(z, live), out.indices))
        return out

    part.__dict__["_quantize"] = listen  # of this object alone, in front of the method
    try:
        yield
    finally:
        del part.__dict__["_quantize"]


@torch.no_grad()
def _watch(
    quantizer: "AbstractQuantizer",
    parts: Sequence["AbstractQuantizer | None"],
    batches: Iterable[tuple[Tensor, Tensor | None]],
) -> tuple[list[_Window], Tensor]:
    """One window per stage, of this process, and the number of live vectors that are not finite.

    A forward in eval mode counts nothing; the calls of a quantizer inside it are its stages, in their order.
    """
    uses = Counter(part for part in parts if part is not None)
    state = itertools.chain(quantizer.parameters(), quantizer.buffers())
    device = next((tensor.device for tensor in state), _distributed.device())
    windows = [_Window(quantizer.codebook_size, part, device) for part in parts]
    dirty = torch.zeros((), dtype=torch.int64, device=device)
    calls: defaultdict[AbstractQuantizer, list[_Call]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_evaluating(quantizer))
        for listened in uses:
            stack.enter_context(_listening(listened, calls[listened]))
        for batch, mask in batches:
            for seen in calls.values():
                seen.clear()
            indices = quantizer.forward(batch, mask).indices.view(-1, len(windows))
            flat, live = quantizer._flatten(batch, mask)
            clean = measurable_vectors(flat, live)
            dirty += (live & ~clean).sum().to(device)
            looks = {part: iter(seen) for part, seen in calls.items() if len(seen) == uses[part]}
            for stage, (window, part) in enumerate(zip(windows, parts, strict=True)):
                z, own, chosen = next(looks[part]) if part in looks else (None, clean, indices[:, stage])
                window.look(None if z is None else z.to(device), own.to(device), chosen.to(device))
    return windows, dirty


def _pair(
    latents: Tensor | Iterable[Tensor], mask: Tensor | Iterable[Tensor] | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of latents with their masks."""
    if not isinstance(latents, Iterable):
        raise TypeError(
            f"health takes a batch of latents, or an iterable of batches, but got {type(latents).__name__}. "
            f"Pass what forward takes."
        )
    batches = [latents] if isinstance(latents, Tensor) else latents
    masks = [mask] if isinstance(mask, Tensor) else mask
    if masks is None:
        yield from ((batch, None) for batch in batches)
        return
    for batch, live in itertools.zip_longest(batches, masks):
        if batch is None or live is None:
            raise ValueError(
                "health takes one mask for each batch of latents, but got more of the one than of the other. "
                "Pass an iterable of masks beside one of batches."
            )
        yield batch, live
