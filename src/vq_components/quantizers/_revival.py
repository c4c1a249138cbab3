"""Settings of dead-code revival; its statistics live in the codebook."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DeadCodeRevival:
    """Replaces codebook entries that are good for hardly any vector by vectors of the batch.

    An entry's share of an update is ``s_k = max(K n_k / N, K d_k / d)``, where it stands for ``n_k`` of the ``N``
    vectors, and ``d_k`` of the sum ``d`` of all distances between a vector and its entry is theirs. It enters a moving
    average, ``u_k <- a * u_k + (1 - a) * s_k`` with ``a = decay ** min(N / K, 1)``, so that many small updates weigh as
    much as few large ones. An entry with ``u_k < threshold`` is dead: it moves to a vector of the current batch, drawn
    at random in proportion to its squared distance from the entry that now stands for it, and starts again with
    ``u_k = 1``.

    The second share keeps entries that stand for few vectors, but for far ones: without it, rare content is forgotten
    again and again. Entries that no vector chooses have neither. How settings compare is in the explanation
    "Codebooks that stay alive". Related to the random restarts of Dhariwal et al., "Jukebox: A Generative Model for
    Music" (2020), there without averages and weights.

    Args:
        threshold: usage below which an entry is dead, in fair shares; in ``[0, 1)``.
        decay: of the moving average, per update of at least ``K`` vectors, in ``[0, 1)``. An entry that is never chosen
            is dead after ``log(threshold) / log(decay)`` such updates, 7 by default.

    Raises:
        ValueError: if a setting is outside its range.

    Note:
        To stop reviving, for example for the last tenth of a training, set the quantizer's ``revival`` to ``None``.
    """

    threshold: float = 0.5
    decay: float = 0.9

    def __post_init__(self) -> None:
        if not (0 <= self.threshold < 1 and 0 <= self.decay < 1):
            raise ValueError(
                f"DeadCodeRevival needs threshold and decay in [0, 1), but got threshold={self.threshold}, "
                f"decay={self.decay}. The threshold is in shares of the fair usage 1 / K."
            )


def check_revival(revival: DeadCodeRevival | None) -> None:
    """Raises unless these are settings, or None for no revival."""
    if not (revival is None or isinstance(revival, DeadCodeRevival)):
        raise TypeError(f"revival is a DeadCodeRevival, or None for no revival, but got {revival!r}. Pass one of them.")
