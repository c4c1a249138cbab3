"""How a codebook is used, as a metric."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ..functional._codes import check_indices, count_codes, perplexity_of_counts, usage_of_counts


class CodebookUsage(Metric):
    """How a codebook is used over all indices since the last reset, on all processes.

    Counts how often each entry occurs; ``compute`` gives ``usage``, the share of entries that occur, ``perplexity``,
    the exponential of the entropy of their shares, and ``dead``, the number of entries that do not occur.

    Args:
        codebook_size: number of entries ``K``.
        kwargs: torchmetrics' own, such as ``sync_on_compute``.

    Raises:
        ValueError: if ``codebook_size`` is not positive; from ``update``, if an index is not in
            ``[-1, codebook_size)``.
        TypeError: from ``update``, if indices are not integers.

    Example:
        >>> metric = CodebookUsage(codebook_size=8)
        >>> metric.update(torch.tensor([[0, 3], [3, -1]]))
        >>> metric.compute()["usage"], metric.compute()["dead"]
        (tensor(0.2500), tensor(6))
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(self, codebook_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if codebook_size < 1:
            raise ValueError(f"CodebookUsage counts at least one entry, but got codebook_size={codebook_size}.")
        self.codebook_size = codebook_size
        self.add_state("counts", torch.zeros(codebook_size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, indices: Tensor) -> None:
        """Counts indices of any shape; -1 marks a masked position and is ignored."""
        check_indices(indices, self.codebook_size, name="CodebookUsage")
        self.counts += count_codes(indices, self.codebook_size)

    def compute(self) -> dict[str, Tensor]:
        """Scalars ``usage``, ``perplexity`` and ``dead``."""
        return {
            "usage": usage_of_counts(self.counts),
            "perplexity": perplexity_of_counts(self.counts),
            "dead": (self.counts == 0).sum(),
        }

    def plot(self, val: Any = None, ax: Any = None) -> tuple[Any, Any]:
        """Draws values over steps, or, without values, how often each entry occurred.

        Args:
            val: what ``compute`` or ``forward`` gave, or a list of such; needs matplotlib, as torchmetrics does.
            ax: axes to draw into; a new figure if None.

        Returns:
            The figure and the axes.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        if val is not None:
            return self._plot(val, ax)
        from ..plotting import plot_usage  # another extra

        with self.sync_context(should_sync=self._to_sync):
            return plot_usage(self.counts, ax=ax)
