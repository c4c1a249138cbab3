"""Quantizers without a codebook to learn: every channel is rounded on its own."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import functional
from ._base import AbstractQuantizer, QuantizerOutput
from ._terms import mean_square, seen_vectors, usage_terms


class FSQ(AbstractQuantizer):
    """Rounds every channel to one of a few levels: finite scalar quantization.

    ``quantized_i = round(f_i(z_i)) / floor(L_i / 2)`` with the bound ``f_i(z) = h tanh(z + tan(o / h)) - o``, where
    ``h = (L_i - 1)(1 - 0.001) / 2`` and ``o`` is 0.5 for an even number of levels ``L_i``, else 0: Mentzer et al.,
    "Finite Scalar Quantization: VQ-VAE Made Simple" (2023), appendix A.1. Of more than 1000 levels the outermost would
    be out of reach: there ``h = (L_i - 1.5) / 2``. The index is ``sum_i n_i prod_{j<i} L_j``, where ``n_i`` in
    ``[0, L_i)`` numbers the levels upwards. Rounding is straight through, the bound is not: the gradient of ``z_i`` is
    that of ``f_i(z_i) / floor(L_i / 2)``.

    Nothing collapses and nothing is learned, so there is no loss and no state. The paper recommends:

    ======  ======================
    ``K``   ``levels``
    ======  ======================
    2^8     ``(8, 6, 5)``
    2^10    ``(8, 5, 5, 5)``
    2^12    ``(7, 5, 5, 5, 5)``
    2^14    ``(8, 8, 8, 6, 5)``
    2^16    ``(8, 8, 8, 5, 5, 5)``
    ======  ======================

    Args:
        levels: number of levels ``L_i`` of each channel, at least 2, in the paper at least 5; there are
            ``K = prod_i L_i`` entries and ``len(levels)`` channels. For inputs of another width, see
            :class:`ProjectedQuantizer`.
        channel_dim: where the channels are, 1 for ``(B, C, ...)``, -1 for channels last.

    Raises:
        ValueError: if ``levels`` is empty, one is below 2, or they make more than ``2^62`` entries; if ``channel_dim``
            is 0.
        TypeError: if ``levels`` is a number.

    Note:
        ``loss`` and the terms ``commitment`` and ``codebook`` are 0. A vector that is not finite gets index 0 and makes
        the loss NaN, so that it is seen.

    Example:
        >>> fsq = FSQ((8, 5, 5, 5))
        >>> quantized, indices, loss, terms = fsq(torch.randn(2, 4, 8, 8))
        >>> fsq.codebook_size, indices.shape, loss.item()
        (1000, torch.Size([2, 8, 8]), 0.0)
        >>> torch.equal(fsq.decode(indices), quantized)
        True
    """

    def __init__(self, levels: Sequence[int], *, channel_dim: int = 1) -> None:
        if isinstance(levels, int):
            raise TypeError(
                f"FSQ takes a sequence with the number of levels of each channel, but got {levels}. "
                f"Pass for example ({levels}, {levels}, {levels}) for three channels."
            )
        if not levels or min(levels) < 2:
            raise ValueError(f"FSQ needs at least 2 levels for each channel, but got levels={tuple(levels)}.")
        size = math.prod(levels)
        if size > 2**62:
            raise ValueError(
                f"FSQ numbers its entries with int64, but levels={tuple(levels)} make {size:.3g} of them. "
                f"Split the channels with GroupedQuantizer."
            )
        super().__init__(len(levels), codebook_size=size, channel_dim=channel_dim)
        self.levels = tuple(levels)

    @property
    def codebook(self) -> Tensor:
        """All entries, ``(K, D)``, made on the CPU at each access: mind a huge ``K``."""
        return self._decode(torch.arange(self.codebook_size))

    def _quantize(self, z: Tensor, live: Tensor) -> QuantizerOutput:
        seen = seen_vectors(z, live)
        bounded = self._bound(z)
        indices = self._index(bounded.detach(), seen)
        soft = torch.stack([x / (count // 2) for x, count in self._channels(bounded)], dim=1)
        loss = torch.where(live[:, None], 0 * z, 0).sum()
        terms = {
            "commitment": loss.detach().to(torch.float32, copy=True),
            "codebook": torch.zeros_like(loss.detach(), dtype=torch.float32),
            **usage_terms(torch.where(seen, indices, -1), self.codebook_size),
        }
        quantized = functional.straight_through(soft, self._decode(indices).to(z.dtype))
        return QuantizerOutput(quantized, indices, loss, terms)

    def _encode(self, z: Tensor, live: Tensor) -> Tensor:
        return self._index(self._bound(z), seen_vectors(z, live))

    def _decode(self, indices: Tensor) -> Tensor:
        channels = []
        for count in self.levels:
            channels.append((indices % count - count // 2).float() / (count // 2))
            indices = indices // count
        return torch.stack(channels, dim=1)

    def _channels(self, z: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Each channel ``(N,)`` with its number of levels: constants stay out of the state, and off the device."""
        return zip(z.unbind(dim=1), self.levels, strict=True)

    def _bound(self, z: Tensor) -> Tensor:
        channels = []
        for x, count in self._channels(z):
            # The paper's factor, as far as it leaves the outermost levels within reach.
            half = ((count - 1) * (1 - 1e-3) if count <= 1000 else count - 1.5) / 2
            offset = 0.5 * (count % 2 == 0)
            channels.append(half * torch.tanh(x + math.tan(offset / half)) - offset)
        return torch.stack(channels, dim=1)

    def _index(self, bounded: Tensor, seen: Tensor) -> Tensor:
        index, step = torch.zeros_like(seen, dtype=torch.int64), 1
        for x, count in self._channels(torch.where(seen[:, None], bounded, 0)):
            index = index + step * (x.round().long() + count // 2)
            step *= count
        return torch.where(seen, index, 0)

    def extra_repr(self) -> str:
        """Settings for ``repr``."""
        return f"levels={self.levels}"


class LFQ(AbstractQuantizer):
    """Takes the sign of every channel: lookup-free quantization, with ``2^num_bits`` entries and no codebook.

    ``quantized_i = 1 if z_i > 0 else -1``, with the index ``sum_i 2^(i-1) [z_i > 0]``, and ``loss = entropy_weight *
    (E[H(q(z))] - diversity_weight * H(E[q(z)])) + commitment_weight * mean((z - sg[quantized])^2)``, where ``q(z)`` are
    soft assignments: Yu et al., "Language Model Beats Diffusion -- Tokenizer is Key to Visual Generation" (2023). The
    first entropy makes every sign certain, the second, subtracted, makes all entries used alike. Both are exact and
    need no ``N x K`` matrix, see :func:`vq_components.functional.bit_entropies`. On several processes the second
    entropy is that of the process's own batch. The gradient of the output goes to ``z`` straight through.

    Args:
        num_bits: number of channels; there are ``K = 2^num_bits`` entries. For inputs of another width, see
            :class:`ProjectedQuantizer`.
        entropy_weight: of both entropies. With 0 they are still reported.
        diversity_weight: of the batch's entropy within the entropy term, ``gamma`` in other code.
        commitment_weight: pull of the entries on the encoder.
        temperature: softness of the assignments, in units of squared distance.
        channel_dim: where the channels are, 1 for ``(B, C, ...)``, -1 for channels last.

    Raises:
        ValueError: if ``num_bits`` is not in ``[1, 62]``, ``temperature`` is not positive or ``channel_dim`` is 0.

    Note:
        ``terms`` also hold ``entropy`` and ``diversity``, the two entropies in nats; ``codebook`` is 0. The entropy
        of the batch and the usage take memory for several times ``K`` numbers, 17 GB with 32 bits: beyond some 28 bits
        split the channels with :class:`GroupedQuantizer`. ``encode`` and ``decode`` need none of it.

    Example:
        >>> lfq = LFQ(num_bits=10)
        >>> quantized, indices, loss, terms = lfq(torch.randn(2, 10, 8, 8))
        >>> lfq.codebook_size, indices.shape, sorted(quantized.unique().tolist())
        (1024, torch.Size([2, 8, 8]), [-1.0, 1.0])
        >>> torch.equal(lfq.decode(indices), quantized)
        True
    """

    _more_use = "raise diversity_weight, or "

    def __init__(
        self,
        num_bits: int,
        *,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
        commitment_weight: float = 0.25,
        temperature: float = 0.01,
        channel_dim: int = 1,
    ) -> None:
        if not (1 <= num_bits <= 62 and temperature > 0):
            raise ValueError(
                f"LFQ needs 1 to 62 bits and a positive temperature, "
                f"but got num_bits={num_bits}, temperature={temperature}."
            )
        super().__init__(num_bits, codebook_size=2**num_bits, channel_dim=channel_dim)
        self.entropy_weight = entropy_weight
        self.diversity_weight = diversity_weight
        self.commitment_weight = commitment_weight
        self.temperature = temperature

    @property
    def codebook(self) -> Tensor:
        """All entries, ``(K, num_bits)``, made on the CPU at each access: mind a huge ``K``."""
        return self._decode(torch.arange(self.codebook_size))

    def _quantize(self, z: Tensor, live: Tensor) -> QuantizerOutput:
        seen = seen_vectors(z, live)
        indices = self._encode(z, live)
        entries = self._decode(indices).to(z.dtype)
        commitment = mean_square(z, entries, live)
        entropies = functional.bit_entropies(torch.where(seen[:, None], z, 0), temperature=self.temperature, mask=seen)
        loss = self.commitment_weight * commitment
        if self.entropy_weight != 0:
            loss = loss + self.entropy_weight * (entropies.sample - self.diversity_weight * entropies.batch)
        terms = {
            "commitment": commitment.detach().float(),
            "codebook": torch.zeros_like(commitment.detach(), dtype=torch.float32),
            "entropy": entropies.sample.detach().float(),
            "diversity": entropies.batch.detach().float(),
            **usage_terms(torch.where(seen, indices, -1), self.codebook_size),
        }
        return QuantizerOutput(functional.straight_through(z, entries), indices, loss, terms)

    def _encode(self, z: Tensor, live: Tensor) -> Tensor:
        bits = (z > 0).long() * self._powers(z.device)
        return torch.where(seen_vectors(z, live), bits.sum(dim=1), 0)

    def _decode(self, indices: Tensor) -> Tensor:
        bits = indices[:, None] & self._powers(indices.device)
        return (bits > 0).float() * 2 - 1

    def _powers(self, device: torch.device) -> Tensor:
        # No shifts: ONNX has none of signed integers.
        return 2 ** torch.arange(self.dim, device=device)

    def extra_repr(self) -> str:
        """Settings for ``repr``."""
        return f"num_bits={self.dim}"
