"""Settings of dead-code revival; its statistics live in the codebook."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DeadCodeRevival:
    """Replaces codebook entries that hardly any vector chooses by vectors of the batch.

    With each update of the codebook, the usage ``u_k`` of every entry, its count in shares of the fair ``N / K``,
    enters a moving average, ``u_k <- decay * u_k + (1 - decay) * n_k * K / N``. An entry with ``u_k < threshold`` is
    dead: it moves to a vector of the current batch, drawn at random in proportion to its squared distance from the
    entry that now stands for it, and starts again with ``u_k = 1``.

    Related to the random restarts of Dhariwal et al., "Jukebox: A Generative Model for Music" (2020), there without
    the average and the weighting.

    Args:
        threshold: usage below which an entry is dead, in shares of the fair usage ``1 / K``; in ``[0, 1)``.
        decay: of the moving average, per update, in ``[0, 1)``. An entry that is never chosen is dead after
            ``log(threshold) / log(decay)`` updates.

    Raises:
        ValueError: if a setting is outside its range.

    Note:
        To stop reviving, for example for the last steps of a training, set the quantizer's ``revival`` to ``None``.
    """

    threshold: float = 0.1
    decay: float = 0.97

    def __post_init__(self) -> None:
        if not (0 <= self.threshold < 1 and 0 <= self.decay < 1):
            raise ValueError(
                f"DeadCodeRevival needs threshold and decay in [0, 1), but got threshold={self.threshold}, "
                f"decay={self.decay}. The threshold is in shares of the fair usage 1 / K."
            )
