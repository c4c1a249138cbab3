"""What is wrong with a codebook, in plain language."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Findings(NamedTuple):
    """What is known about one stage over a window; numbers are of all processes."""

    counts: Tensor  # (K,) vectors of each entry
    code_norms: tuple[float, float, float]  # smallest, mean, largest; NaN where no entries are learned
    latent_norms: tuple[float, float, float]  # the same of the vectors; NaN where they are not known
    spread: float  # root of the mean squared distance of a vector to the mean vector
    error: float  # root of the mean squared distance of a vector to its entry
    duplicates: int
    broken: int  # entries that are not finite
    waiting: bool  # the codebook has not started from data yet
    can_revive: bool  # whether dead entries can be revived
    not_finite: int  # live vectors that are not finite

    @property
    def relative_error(self) -> float:
        """Mean squared error in shares of the variance."""
        if self.spread > 0:
            return (self.error / self.spread) ** 2
        return self.error if math.isnan(self.spread) or self.error == 0 else math.inf


def find_reasons(found: Findings) -> Iterator[str]:
    """One sentence for each thing that is wrong: what is the case, and what to do."""
    if found.not_finite:
        yield (
            f"vectors that are NaN, infinite or too large to be squared, and were left out: {found.not_finite}. Look "
            f"for an overflow in the encoder, or lower its learning rate."
        )
    if found.broken:
        yield f"entries that are NaN or infinite, and can never be chosen: {found.broken}. Load an earlier checkpoint."
    if not found.counts.any():
        yield "there is no live vector in the window: pass latents, or look at the mask."
    elif found.waiting:
        yield (
            "the codebook has not been started from data, its entries are still random: run a forward in training mode."
        )
    else:
        yield from _reasons_of_place(found)
        yield from _reasons_of_use(found)


def _reasons_of_place(found: Findings) -> Iterator[str]:
    """About where entries and vectors are."""
    (smallest, _, radius), latents = found.code_norms, found.latent_norms[1]
    if found.spread <= 1e-3 * latents:
        yield (
            f"all latents lie within {found.spread:.3g} of one point at norm {latents:.3g}: the encoder has collapsed. "
            f"Look at its normalization and lower commitment_weight."
        )
    elif radius < latents / 10:
        yield (
            f"all codes within radius {radius:.3g}, latents at {latents:.3g}: the codebook is not where the data is. "
            + (
                'Start it from data (init="data") and revive dead entries (revival=DeadCodeRevival()).'
                if found.can_revive
                else "Start it from vectors of the data, by set_codebook_()."
            )
        )
    elif smallest > 10 * latents:
        yield (
            f"all codes beyond radius {smallest:.3g}, latents at {latents:.3g}: the codebook is not where the data is. "
            f"Raise commitment_weight if the latents shrink, or start anew from data."
        )
    elif found.relative_error >= 1:
        yield (
            f"the mean squared distance of a vector to its entry is {found.relative_error:.2f} of the vectors' "
            f"variance, a single entry could do 1: the codebook does not follow the encoder. Lower the encoder's "
            f"learning rate, raise commitment_weight, or use EMAVectorQuantizer with a lower decay."
        )


def _reasons_of_use(found: Findings) -> Iterator[str]:
    """About how many entries are chosen, and how often."""
    size, vectors = len(found.counts), int(found.counts.sum())
    dead, unlucky = int((found.counts == 0).sum()), size * math.exp(-vectors / size)
    if vectors < size:
        yield (
            f"{vectors} vectors cannot show the use of {size} entries: pass more batches, several vectors per entry."
        )
    elif dead > unlucky + 0.1 * size:
        yield (
            f"{dead} of {size} entries stand for none of {vectors} vectors, where chance would leave {unlucky:.0f}: "
            f"{'revive dead entries (revival=DeadCodeRevival()), or ' if found.can_revive else ''}"
            f"take a smaller codebook."
        )
    else:
        share = found.counts.sort(descending=True).values.cumsum(0) / vectors
        few = int((share < 0.5).sum()) + 1
        if few <= 0.01 * size:
            yield (
                f"{few} of {size} entries stand for half of all {vectors} vectors: most of what the encoder gives is "
                f"the same. Look for constant areas in the data, or take a smaller codebook."
            )
    if found.duplicates:
        yield (
            f"{found.duplicates} of {size} entries have another one in the same place"
            + (
                ", which is never chosen in their stead: revive dead entries (revival=DeadCodeRevival())."
                if found.can_revive
                else ": take a smaller codebook."
            )
        )


def count_duplicates(codebook: Tensor, spread: float) -> int:
    """Number of entries ``(K, D)`` that have another one within a thousandth of the spacing of evenly placed entries.

    The spacing is ``s * K^(-1/D)``, where ``s^2`` is the mean squared distance to the mean entry, or that of the
    vectors to theirs, ``spread^2``, if it is smaller: a few entries far off must not make all others look alike.
    """
    size, dim = codebook.shape
    if size < 2:
        return 0
    # Double precision, where the device has it: the entries may be far from the origin, or from each other.
    codebook = codebook if codebook.device.type == "mps" else codebook.double()
    centered = codebook - codebook.mean(dim=0)
    own = float(centered.square().sum(dim=1).mean().sqrt())
    radius = 1e-3 * min(own, own if math.isnan(spread) else spread) * size ** (-1 / dim)
    # Two entries are not farther apart on a line than they are. Random lines: on an axis, many may be in one place.
    lines = F.normalize(torch.randn(dim, 2, generator=torch.Generator().manual_seed(0)), dim=0).to(centered)
    places = centered @ lines
    order = places[:, 0].argsort()
    codebook, places = codebook[order], places[order]
    ahead = _has_one_ahead(codebook, places, radius)
    behind = _has_one_ahead(codebook.flip(0), -places.flip(0), radius).flip(0)
    return int((ahead | behind).sum())


def _has_one_ahead(codebook: Tensor, places: Tensor, radius: float) -> Tensor:
    """Which entries ``(K, D)`` have a later one within the radius.

    They are sorted by the first of their ``places`` ``(K, 2)`` on two lines; the second rules out most that are left.
    """
    first, second = places.unbind(dim=1)
    found = torch.zeros(len(codebook), dtype=torch.bool, device=codebook.device)
    waiting = torch.arange(len(codebook), device=codebook.device)
    step = 0
    while len(waiting):
        step += 1
        waiting = waiting[waiting < len(codebook) - step]
        waiting = waiting[first[waiting + step] - first[waiting] <= radius]
        near = waiting[(second[waiting + step] - second[waiting]).abs() <= radius]
        found[near[(codebook[near + step] - codebook[near]).norm(dim=1) <= radius]] = True
        waiting = waiting[~found[waiting]]
    return found
