"""A codebook of which only a linear map is learned."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional import nearest_code, straight_through
from ._base import AbstractQuantizer, QuantizerOutput
from ._terms import check_entries, finite, mean_square, seen_vectors, usage_terms


class SimVQ(AbstractQuantizer):
    """Replaces each vector by the nearest of ``W c_k + b``: the entries ``c_k`` stay as they are, ``W`` learns.

    ``loss = codebook_weight * mean((sg[z] - e)^2) + commitment_weight * mean((z - sg[e])^2)`` with ``e = W c_k + b``:
    Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer" (2024). Every
    step moves all entries together, so those that are not chosen do not stay behind; there is no start from data, no
    revival and nothing to update. The ``c_k``, ``embedding.weight``, are drawn from ``N(0, 1 / D)`` and receive no
    gradient. A training step takes memory for a few ``K x D`` matrices.

    Args:
        codebook_size: number of entries ``K``.
        codebook_dim: their width ``D``, the number of channels of the input.
        commitment_weight: pull of the entries on the encoder, ``beta`` in the paper.
        codebook_weight: pull of the encoder's output on the entries.
        channel_dim: where the channels are, 1 for ``(B, C, ...)``, -1 for channels last.

    Raises:
        ValueError: if a size is not positive or ``channel_dim`` is 0.

    Example:
        >>> vq = SimVQ(codebook_size=512, codebook_dim=8)
        >>> quantized, indices, loss, terms = vq(torch.randn(2, 8, 4, 4))
        >>> torch.equal(vq.decode(indices), quantized)
        True
        >>> [name for name, parameter in vq.named_parameters() if parameter.requires_grad]
        ['embedding_proj.weight', 'embedding_proj.bias']
    """

    _entries_are = "nearest"

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
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
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.embedding_proj = nn.Linear(codebook_dim, codebook_dim)
        self.embedding = nn.Embedding(codebook_size, codebook_dim).requires_grad_(False)
        nn.init.normal_(self.embedding.weight, std=codebook_dim**-0.5)

    @property
    def codebook(self) -> Tensor:
        """The entries ``W c_k + b``, ``(K, D)``, computed at each access; the gradient goes to ``W`` and ``b``."""
        weight, bias = self._trained(self.embedding_proj.weight), self._trained(self.embedding_proj.bias)
        # A copy: the backward needs them as they were.
        return F.linear(self.embedding.weight.detach().to(weight.dtype, copy=True), weight, bias)

    @torch.no_grad()
    def set_codebook_(self, codebook: Tensor) -> None:
        """Replaces all entries: ``c_k`` by the given ones, the linear map by the identity.

        Args:
            codebook: the new entries, ``(K, D)``, finite. An optimizer's moments are not touched.

        Raises:
            ValueError: if the shape differs or a value is not finite.
            TypeError: if it is no tensor.
        """
        check_entries(codebook, self.embedding.weight)
        self.embedding.weight.copy_(codebook)
        nn.init.eye_(self.embedding_proj.weight)
        nn.init.zeros_(self.embedding_proj.bias)

    def _quantize(self, z: Tensor, live: Tensor) -> QuantizerOutput:
        seen = seen_vectors(z, live)
        clean = finite(z.detach())
        codebook = self.codebook
        indices = torch.where(seen, nearest_code(clean, codebook), 0)
        # A gather from all entries, not W times those: decode's bits do not depend on the number of vectors.
        entries = F.embedding(indices, codebook).to(z.dtype)
        commitment = mean_square(z, entries.detach(), live)
        distance = mean_square(clean, entries, seen)
        terms = {
            "commitment": commitment.detach().float(),
            "codebook": distance.detach().float(),
            **usage_terms(torch.where(seen, indices, -1), self.codebook_size),
        }
        loss = self.commitment_weight * commitment + self.codebook_weight * distance
        return QuantizerOutput(straight_through(z, entries.detach()), indices, loss, terms)

    def _encode(self, z: Tensor, live: Tensor) -> Tensor:
        seen = seen_vectors(z, live)
        return torch.where(seen, nearest_code(finite(z), self.codebook), 0)

    def _decode(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.codebook)
