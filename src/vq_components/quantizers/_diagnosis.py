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
    revives: bool | None  # whether dead entries are revived; None if they cannot be
    more_use: str  # what else the quantizer has that brings entries into use
    by_distance: bool  # whether the nearest entry is chosen
    of_rest: bool  # whether the vectors are what stages before have left over
    not_finite: int  # live vectors that are not finite

    @property
    def relative_error(self) -> float:
        """Mean squared error in shares of the variance."""
        if math.isnan(self.error):
            return math.nan
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
            "the codebook has not been started from data, its entries are still random: run a forward in training "
            "mode, not frozen."
        )
    else:
        if found.spread <= 1e-3 * found.latent_norms[1]:
            yield _reason_of_collapse(found)
        elif found.by_distance:
            yield from _reasons_of_place(found)
        yield from _reasons_of_use(found)


def _reason_of_collapse(found: Findings) -> str:
    """About vectors that are all alike."""
    place = f"within {found.spread:.3g} of one point at norm {found.latent_norms[1]:.3g}"
    if found.of_rest:
        return f"all that the stages before leave over lies {place}: there is nothing left to do. Take fewer stages."
    return f"all latents lie {place}: the encoder has collapsed. Look at its normalization and lower commitment_weight."


def _reasons_of_place(found: Findings) -> Iterator[str]:
    """About where entries and vectors are."""
    (smallest, _, radius), latents = found.code_norms, found.latent_norms[1]
    if radius < latents / 10:
        advice = {
            None: "Start it from vectors of the data, by set_codebook_().",
            False: 'Start it from data (init="data") and revive dead entries (revival=DeadCodeRevival()).',
            True: "Train on: dead entries are revived there; or start it from vectors of the data, by set_codebook_().",
        }
        yield (
            f"all codes within radius {radius:.3g}, latents at {latents:.3g}: the codebook is not where the data is. "
            f"{advice[found.revives]}"
        )
    elif smallest > 10 * latents:
        yield (
            f"all codes beyond radius {smallest:.3g}, latents at {latents:.3g}: the codebook is not where the data is. "
            f"Raise commitment_weight if the latents shrink, or start anew from vectors of the data, by "
            f"set_codebook_()."
        )
    elif found.relative_error >= 1 and len(found.counts) > 1:
        yield (
            f"the mean squared distance of a vector to its entry is {found.relative_error:.2f} of the vectors' "
            f"variance, a single entry could do 1: the codebook does not follow the encoder. Lower the encoder's "
            f"learning rate, raise commitment_weight, or let the codebook learn faster."
        )


def _reasons_of_use(found: Findings) -> Iterator[str]:
    """About how many entries are chosen, and how often."""
    revive = {
        None: "",
        False: "revive dead entries (revival=DeadCodeRevival()), or ",
        True: "train on, since dead entries are revived, or ",
    }[found.revives]
    size, vectors = len(found.counts), int(found.counts.sum())
    dead, unlucky = int((found.counts == 0).sum()), size * math.exp(-vectors / size)
    if vectors < size:
        yield (
            f"{vectors} vectors cannot show the use of {size} entries: pass more batches, several vectors per entry."
        )
    elif dead > unlucky + 0.1 * size:
        yield (
            f"{dead} of {size} entries stand for none of {vectors} vectors, where chance would leave {unlucky:.0f}: "
            f"{revive}{found.more_use}take a smaller codebook."
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
            f"{found.duplicates} of {size} entries have another one in the same place: {revive}take a smaller codebook."
        )


def count_duplicates(codebook: Tensor, spread: float) -> int:
    """Number of entries ``(K, D)`` that have another one within a thousandth of the spacing of evenly placed entries.

    The spacing is ``s * K^(-1/D)``, where ``s`` is the distance from the median entry within which nine tenths of them
    lie, or ``spread`` if it is smaller: a few entries far off must not make all others look alike.
    """
    size, dim = codebook.shape
    if size < 2:
        return 0
    # Double precision, where the device has it: the entries may be far from the origin, or from each other.
    codebook = codebook if codebook.device.type == "mps" else codebook.double()
    centered = codebook - codebook.median(dim=0).values
    own = float(centered.norm(dim=1).sort().values[(9 * size) // 10])
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
