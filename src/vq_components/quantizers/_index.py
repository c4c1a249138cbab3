"""A codebook in which every entry learns from every vector."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional import index_backprop
from ._base import AbstractQuantizer, QuantizerOutput
from ._terms import check_entries, mean_square, seen_vectors, usage_terms


class IndexBackpropQuantizer(AbstractQuantizer):
    """Replaces each vector by the entry with the largest inner product, which is chosen differentiably.

    ``quantized`` is that entry ``e``; its gradient goes through a softmax over all entries to ``z`` and to the whole
    codebook (:func:`vq_components.functional.index_backprop`), so that no entry stays behind. ``loss = index_weight *
    mean((z - q)^2) + commitment_weight * mean((z - sg[e])^2) + codebook_weight * mean((sg[z] - e)^2)``, where ``q`` is
    ``quantized`` with its gradient: the double quantization loss of Shi et al., "Scalable Image Tokenization with Index
    Backpropagation Quantization" (2024). Their entropy term is not included: add
    :func:`vq_components.functional.code_entropies` of the same vectors to the loss.

    There is no start from data, no revival and nothing to update.

    Args:
        codebook_size: number of entries ``K``.
        codebook_dim: their width ``D``, the number of channels of the input.
        index_weight: of the error whose gradient goes through the softmax.
        commitment_weight: pull of the entries on the encoder.
        codebook_weight: pull of the encoder's output on the entries, ``beta`` in the authors' code.
        channel_dim: where the channels are, 1 for ``(B, C, ...)``, -1 for channels last.

    Raises:
        ValueError: if a size is not positive or ``channel_dim`` is 0.

    Note:
        A training step takes memory for a few ``K x D`` matrices, but the time of several searches: all ``N x K``
        scores are made twice, in tiles. ``terms["commitment"]`` and ``terms["codebook"]`` are the same number.

    Example:
        >>> vq = IndexBackpropQuantizer(codebook_size=64, codebook_dim=8)
        >>> quantized, indices, loss, terms = vq(torch.randn(2, 8, 4, 4))
        >>> quantized.square().mean().backward()
        >>> bool(vq.codebook.grad.any(dim=1).all())
        True
    """

    _learns_from_output = True

    _entries_are = "among"

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        index_weight: float = 1.0,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        channel_dim: int = 1,
    ) -> None:
        if codebook_size < 1 or codebook_dim < 1:
            raise ValueError(
                f"A codebook needs at least one entry and one channel, "
                f"but got codebook_size={codebook_size}, codebook_dim={codebook_dim}."
            )
        super().__init__(codebook_dim, codebook_size=codebook_size, channel_dim=channel_dim)
        self.index_weight = index_weight
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.embedding = nn.Embedding(codebook_size, codebook_dim)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)

    @property
    def codebook(self) -> Tensor:
        """The entries, ``(K, D)``: the parameter itself. Use :meth:`set_codebook_` to replace them."""
        return self.embedding.weight

    @torch.no_grad()
    def set_codebook_(self, codebook: Tensor) -> None:
        """Replaces all entries.

        Args:
            codebook: the new entries, ``(K, D)``, finite. An optimizer's moments of the old ones are not touched.

        Raises:
            ValueError: if the shape differs or a value is not finite.
        """
        check_entries(codebook, self.codebook)
        self.embedding.weight.copy_(codebook)

    def _quantize(self, z: Tensor, live: Tensor) -> QuantizerOutput:
        seen = seen_vectors(z, live)
        clean = torch.where(seen[:, None], z, 0)
        chosen, indices = self._choose(clean)
        # A vector of zeros stands for one that is not seen: it has index 0, and must move nothing.
        chosen = torch.where(seen[:, None], chosen, chosen.detach())
        entries = F.embedding(indices, self._trained(self.embedding.weight)).to(z.dtype)
        commitment = mean_square(z, entries.detach(), live)
        codebook = mean_square(clean.detach(), entries, seen)
        loss = self.commitment_weight * commitment + self.codebook_weight * codebook
        loss = loss + self.index_weight * mean_square(clean, chosen, seen)
        terms = {
            "commitment": commitment.detach().float(),
            "codebook": codebook.detach().float(),
            **usage_terms(torch.where(seen, indices, -1), self.codebook_size),
        }
        return QuantizerOutput(chosen, indices, loss, terms)

    def _encode(self, z: Tensor, live: Tensor) -> Tensor:
        return self._choose(torch.where(seen_vectors(z, live)[:, None], z, 0))[1]

    def _decode(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self._trained(self.embedding.weight))

    def _choose(self, z: Tensor) -> tuple[Tensor, Tensor]:
        weight = self._trained(self.embedding.weight)
        dtype = torch.promote_types(z.dtype, weight.dtype)
        chosen, indices = index_backprop(z.to(dtype), weight.to(dtype))
        return chosen.to(z.dtype), indices
