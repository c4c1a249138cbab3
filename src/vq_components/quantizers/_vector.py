"""Vector quantizers: a codebook of free vectors, trained by gradient or by moving averages."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .. import functional
from ._base import AbstractQuantizer, QuantizerOutput
from ._codebook import Codebook
from ._revival import DeadCodeRevival, check_revival
from ._statistics import as_entries
from ._terms import check_entries, finite, mean_square, measurable_vectors, usage_terms

Estimator = Callable[[Tensor, Tensor], Tensor]
Distance = Literal["euclidean", "cosine"]


class _CodebookQuantizer(AbstractQuantizer):
    """What the two vector quantizers share: everything but the loss and who moves the codebook."""

    _entries_are = "nearest"

    def __init__(self, codebook: Codebook, *, commitment_weight: float, estimator: Estimator, channel_dim: int) -> None:
        if not callable(estimator):
            raise TypeError(
                f"estimator is a function (z, entries) -> quantized, but got {estimator!r}. "
                f"Pass for example vq_components.functional.rotate."
            )
        size, dim = codebook.weight.shape
        super().__init__(dim, codebook_size=size, channel_dim=channel_dim)
        self.embedding = codebook
        self.commitment_weight = commitment_weight
        self.estimator = estimator

    @property
    def codebook(self) -> Tensor:
        """The entries, ``(K, D)``: the parameter or buffer itself, with cosine distance its rows at length 1.

        Use :meth:`set_codebook_` to replace them.
        """
        return self.embedding.all_entries()

    @property
    def revival(self) -> DeadCodeRevival | None:
        """How dead entries are revived; set it to None to stop reviving, or to other settings."""
        return self.embedding.revival

    @revival.setter
    def revival(self, revival: DeadCodeRevival | None) -> None:
        check_revival(revival)
        self.embedding.revival = revival

    def set_codebook_(self, codebook: Tensor) -> None:
        """Replaces all entries: the way to bring a codebook of one's own.

        Statistics are forgotten and the codebook counts as started. Entries that are written into ``codebook`` by hand
        are overwritten by the start from data, and by the next update of a codebook that learns by averages.

        Args:
            codebook: the new entries, ``(K, D)``, finite. An optimizer's moments of the old ones are not touched.

        Raises:
            ValueError: if the shape differs or a value is not finite.
            TypeError: if it is no tensor.
        """
        check_entries(codebook, self.codebook)
        self.embedding.set_(codebook)

    def update_(self) -> None:
        """Applies what the training forwards since the last update have counted, as one update of the codebook.

        That is the moving average of an :class:`EMAVectorQuantizer`, and the revival of dead entries. Without a live
        vector since the last update nothing changes. Once this has been called, only further calls apply updates;
        until then, and where :meth:`update_after` is not used either, every training forward first applies what the
        one before it counted.
        """
        self.embedding.update_manually_(apply=not self.frozen)

    def _update(self) -> None:
        if not self.frozen:
            self.embedding.apply_pending_()

    def _encode(self, z: Tensor, live: Tensor) -> Tensor:
        seen = measurable_vectors(z, live)
        return self.embedding.look_up(finite(self._compared(z)), seen)

    def _decode(self, indices: Tensor) -> Tensor:
        return self._trained(self.embedding.entries(indices))

    def _quantize(self, z: Tensor, live: Tensor) -> QuantizerOutput:
        seen = measurable_vectors(z, live)
        z = self._compared(z)
        indices, entries, distances = self.embedding(
            z.detach(), seen, counts=self.training and not self.frozen, apply_first=self._schedule.ties == 0
        )
        entries = self._trained(entries).to(z.dtype)
        commitment = mean_square(z, entries.detach(), live, distances)
        codebook = mean_square(z.detach(), entries, seen, distances)
        terms = {
            "commitment": commitment.detach().float(),
            "codebook": codebook.detach().float(),
            **usage_terms(torch.where(seen, indices, -1), self.codebook_size),
        }
        quantized = self.estimator(z, entries.detach())
        return QuantizerOutput(quantized, indices, self._loss(commitment, codebook), terms)

    def _compared(self, z: Tensor) -> Tensor:
        """What is compared with the entries: the vectors, or their directions."""
        return as_entries(z, unit_norm=self.embedding.unit_norm)

    @abstractmethod
    def _loss(self, commitment: Tensor, codebook: Tensor) -> Tensor:
        """The weighted sum of the terms that train something."""


class VectorQuantizer(_CodebookQuantizer):
    """Replaces each vector by the nearest entry of a codebook that is trained by gradient.

    ``loss = codebook_weight * mean((sg[z] - e)^2) + commitment_weight * mean((z - sg[e])^2)`` with the entry ``e``
    nearest to ``z`` and the stop-gradient ``sg``: the second and third term of van den Oord et al., "Neural Discrete
    Representation Learning" (2017), whose ``beta`` is ``commitment_weight``. The first term moves only the entries,
    the second only the encoder. With ``commitment_weight=1, codebook_weight=0.25`` it is the loss that the VQ-GAN code
    of Esser et al. (2021) trains with by default. Masked positions do not count in the means; a mean over no position
    is 0.

    In training, a forward also counts which entries are used; an update (see :meth:`update_`) then moves entries that
    hardly any vector chooses. The codebook stays in float32 under ``.half()`` and ``.bfloat16()``.

    On several processes the loss is the process's own mean, as DistributedDataParallel expects it, while statistics
    are those of the joined batch: every process must call the same training forwards.

    Args:
        codebook_size: number of entries ``K``.
        codebook_dim: their width ``D``, the number of channels of the input.
        commitment_weight: pull of the entries on the encoder.
        codebook_weight: pull of the encoder's output on the entries.
        distance: ``"euclidean"``, or ``"cosine"``: vectors and entries are compared at length 1, and ``z`` and ``e``
            in the loss are those. ``quantized`` then has length 1, and gradients pass through the division by the
            length: the l2-normalized codes of Yu et al., "Vector-quantized Image Modeling with Improved VQGAN" (2021).
        estimator: ``(z, entries) -> quantized`` with the value of ``entries`` and a gradient for ``z``. In networks
            with residual blocks :func:`vq_components.functional.rotate` is worth a trial, see the explanation
            "Codebooks that stay alive".
        init: ``"data"`` takes the entries from the first training batch; ``"uniform"`` draws them from
            ``U(-1 / K, 1 / K)``, as the VQ-GAN code does, which leaves most of a large codebook unused.
        revival: when and how dead entries are replaced; None leaves them.
        channel_dim: where the channels are, 1 for ``(B, C, ...)``, -1 for channels last.

    Raises:
        ValueError: if a size is not positive, ``init`` or ``distance`` is unknown or ``channel_dim`` is 0.
        TypeError: if ``estimator`` is no function or ``revival`` are no settings.

    Note:
        A vector that is not finite gets index 0 and enters no statistics; it makes the commitment term, hence the
        loss, NaN, so that it is seen.

    Example:
        >>> vq = VectorQuantizer(codebook_size=512, codebook_dim=64)
        >>> quantized, indices, loss, terms = vq(torch.randn(2, 64, 8, 8))
        >>> quantized.shape, indices.shape, sorted(terms)
        (torch.Size([2, 64, 8, 8]), torch.Size([2, 8, 8]), ['codebook', 'commitment', 'perplexity', 'usage'])
        >>> torch.equal(vq.decode(indices), quantized)
        True
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        distance: Distance = "euclidean",
        estimator: Estimator = functional.straight_through,
        init: Literal["data", "uniform"] = "data",
        revival: DeadCodeRevival | None = DeadCodeRevival(),  # noqa: B008 (frozen)
        channel_dim: int = 1,
    ) -> None:
        codebook = Codebook(
            codebook_size,
            codebook_dim,
            trained_by="gradient",
            init=init,
            revival=revival,
            unit_norm=_is_cosine(distance),
        )
        super().__init__(codebook, commitment_weight=commitment_weight, estimator=estimator, channel_dim=channel_dim)
        self.codebook_weight = codebook_weight

    def _loss(self, commitment: Tensor, codebook: Tensor) -> Tensor:
        return self.commitment_weight * commitment + self.codebook_weight * codebook


class EMAVectorQuantizer(_CodebookQuantizer):
    """Replaces each vector by the nearest entry of a codebook that follows the vectors by moving averages.

    ``N_k <- decay * N_k + (1 - decay) * n_k``, ``m_k <- decay * m_k + (1 - decay) * sum of the n_k vectors z``,
    ``e_k = m_k / N_k``: appendix A.1 of van den Oord et al., "Neural Discrete Representation Learning" (2017), whose
    ``gamma`` is ``decay``. An entry without a vector does not move; one without a past goes to its vectors' mean.
    ``loss = commitment_weight * mean((z - sg[e])^2)`` trains the encoder alone; no optimizer is needed for the
    codebook, which is a buffer.

    A forward never changes the codebook that it used: it only counts, and an update (see :meth:`update_`) applies the
    averages and moves entries that hardly any vector chooses. Everything else is as in :class:`VectorQuantizer`.

    Args:
        codebook_size: number of entries ``K``.
        codebook_dim: their width ``D``, the number of channels of the input.
        commitment_weight: pull of the entries on the encoder, ``beta`` in the paper.
        decay: of the averages, per update, in ``[0, 1)``.
        eps: weight of an entry's present place in ``e_k = (m_k + eps * e_k) / (N_k + eps)``, where ``N_k`` is tiny.
        distance: ``"euclidean"`` or ``"cosine"``, as in :class:`VectorQuantizer`; with cosine distance every update
            ends by bringing the entries to length 1.
        estimator: ``(z, entries) -> quantized`` with the value of ``entries`` and a gradient for ``z``. In networks
            with residual blocks :func:`vq_components.functional.rotate` is worth a trial, see the explanation
            "Codebooks that stay alive".
        init: ``"data"`` or ``"uniform"``, as in :class:`VectorQuantizer`.
        revival: when and how dead entries are replaced; None leaves them.
        channel_dim: where the channels are, 1 for ``(B, C, ...)``, -1 for channels last.

    Raises:
        ValueError: if a size is not positive, ``decay`` or ``eps`` is out of range, ``init`` or ``distance`` is unknown
            or ``channel_dim`` is 0.
        TypeError: if ``estimator`` is no function or ``revival`` are no settings.

    Example:
        >>> vq = EMAVectorQuantizer(codebook_size=512, codebook_dim=64)
        >>> out = vq(torch.randn(2, 64, 8, 8))  # counts
        >>> torch.equal(vq.decode(out.indices), out.quantized)
        True
        >>> vq.update_()  # applies
        >>> torch.equal(vq.decode(out.indices), out.quantized)
        False
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        commitment_weight: float = 0.25,
        decay: float = 0.9,
        eps: float = 1e-5,
        distance: Distance = "euclidean",
        estimator: Estimator = functional.straight_through,
        init: Literal["data", "uniform"] = "data",
        revival: DeadCodeRevival | None = DeadCodeRevival(),  # noqa: B008 (frozen)
        channel_dim: int = 1,
    ) -> None:
        if not (0 <= decay < 1 and eps > 0):
            raise ValueError(
                f"EMAVectorQuantizer needs decay in [0, 1) and a positive eps, but got decay={decay}, eps={eps}."
            )
        codebook = Codebook(
            codebook_size,
            codebook_dim,
            trained_by="average",
            init=init,
            revival=revival,
            decay=decay,
            eps=eps,
            unit_norm=_is_cosine(distance),
        )
        super().__init__(codebook, commitment_weight=commitment_weight, estimator=estimator, channel_dim=channel_dim)

    def _loss(self, commitment: Tensor, codebook: Tensor) -> Tensor:
        return self.commitment_weight * commitment


def _is_cosine(distance: Distance) -> bool:
    if distance not in ("euclidean", "cosine"):
        raise ValueError(f"distance must be 'euclidean' or 'cosine', but got {distance!r}.")
    return distance == "cosine"
