"""A quantizer that samples its entries."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._base import AbstractQuantizer, QuantizerOutput
from ._terms import check_entries, seen_vectors, usage_terms


class GumbelQuantizer(AbstractQuantizer):
    """Samples an entry for each vector from logits that a linear layer gives, differentiably.

    ``logits = W z + b``; in training ``y = softmax((logits + Gumbel noise) / temperature)`` and ``quantized`` is the
    entry ``argmax y``: its gradient reaches that entry, and the logits as if it were ``sum_k y_k e_k``. In eval it is
    the entry ``argmax logits``. Jang et al., "Categorical Reparameterization with Gumbel-Softmax" (2017). ``loss =
    kl_weight * mean_n sum_k p_k log(K p_k)`` with ``p = softmax(logits)``, the divergence from the uniform prior, as in
    the VQ-GAN code of Esser et al. (2021), after Ramesh et al., "Zero-Shot Text-to-Image Generation" (2021), who lower
    the temperature during training: set ``temperature`` before a step.

    Parameters have the original's names, ``proj`` and ``embed``; its 1x1 convolution is loaded as the linear layer that
    it is.

    Args:
        codebook_size: number of entries ``K``.
        codebook_dim: their width, the number of channels of the output.
        in_channels: number of channels of the input.
        temperature: softness of the samples, positive.
        kl_weight: of the divergence.
        straight_through: False mixes the entries, ``quantized = sum_k y_k e_k``, in training.
        channel_dim: where the channels are, 1 for ``(B, C, ...)``, -1 for channels last.

    Raises:
        ValueError: if a size or ``temperature`` is not positive or ``channel_dim`` is 0.

    Note:
        Training takes memory for a few ``N x K`` matrices: for large codebooks use another quantizer. ``quantized`` is
        ``decode(indices)`` in eval and, with ``straight_through``, in training. ``encode`` never samples. ``terms``
        also hold ``kl``; ``commitment`` and ``codebook`` are 0.

    Example:
        >>> vq = GumbelQuantizer(64, 8, in_channels=16)
        >>> quantized, indices, loss, terms = vq(torch.randn(2, 16, 4, 4))
        >>> quantized.shape, indices.shape
        (torch.Size([2, 8, 4, 4]), torch.Size([2, 4, 4]))
    """

    _learns_from_output = True
    _entries_are = "apart"
    _more_use = "raise kl_weight or temperature, or "

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        in_channels: int,
        temperature: float = 1.0,
        kl_weight: float = 5e-4,
        straight_through: bool = True,
        channel_dim: int = 1,
    ) -> None:
        if min(codebook_size, codebook_dim, in_channels) < 1 or temperature <= 0:
            raise ValueError(
                f"GumbelQuantizer needs positive sizes and a positive temperature, but got "
                f"codebook_size={codebook_size}, codebook_dim={codebook_dim}, in_channels={in_channels}, "
                f"temperature={temperature}."
            )
        super().__init__(in_channels, codebook_size=codebook_size, dim_out=codebook_dim, channel_dim=channel_dim)
        self.temperature = temperature
        self.kl_weight = kl_weight
        self.straight_through = straight_through
        self.proj = nn.Linear(in_channels, codebook_size)
        self.proj.register_load_state_dict_pre_hook(_flatten_convolution)  # type: ignore[no-untyped-call]
        self.embed = nn.Embedding(codebook_size, codebook_dim)

    @property
    def codebook(self) -> Tensor:
        """The entries, ``(K, D)``: the parameter itself. Use :meth:`set_codebook_` to replace them."""
        return self.embed.weight

    @torch.no_grad()
    def set_codebook_(self, codebook: Tensor) -> None:
        """Replaces all entries, not the logits.

        Args:
            codebook: the new entries, ``(K, D)``, finite. An optimizer's moments of the old ones are not touched.

        Raises:
            ValueError: if the shape differs or a value is not finite.
        """
        check_entries(codebook, self.codebook)
        self.embed.weight.copy_(codebook)

    def _quantize(self, z: Tensor, live: Tensor) -> QuantizerOutput:
        seen = seen_vectors(z, live)
        logits = self._logits(torch.where(seen[:, None], z, 0))
        log_p = logits.log_softmax(dim=1)
        divergence = (log_p.exp() * log_p).sum(dim=1) + math.log(self.codebook_size)
        kl = torch.where(seen, divergence, 0).sum() / seen.sum().clamp(min=1)
        kl = kl + torch.where(live[:, None], 0 * z, 0).sum()  # NaN where a vector is not finite, so that it is seen
        quantized, indices = self._mix(logits, seen)
        zero = torch.zeros_like(kl.detach(), dtype=torch.float32)
        terms = {
            "commitment": zero,
            "codebook": zero.clone(),
            "kl": kl.detach().float(),
            **usage_terms(torch.where(seen, indices, -1), self.codebook_size),
        }
        return QuantizerOutput(quantized.to(z.dtype), indices, self.kl_weight * kl, terms)

    def _mix(self, logits: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Entries ``(N, D)``, or mixtures of them, and indices ``(N,)``: sampled in training, the likeliest in eval."""
        if self.training:
            weights = F.gumbel_softmax(logits, tau=self.temperature, dim=1)
        else:
            weights = (logits / self.temperature).softmax(dim=1)
        indices = torch.where(seen, weights.argmax(dim=1), 0)
        # A copy: the backward needs the entries as they were.
        entries = self._trained(self.embed.weight).to(weights.dtype, copy=True)
        if self.training and not self.straight_through:
            return weights @ entries, indices
        # The entry itself, to the bit, plus a zero with the gradient of the mixture, whatever products are rounded to.
        return F.embedding(indices, entries) + (weights - weights.detach()) @ entries.detach(), indices

    def _encode(self, z: Tensor, live: Tensor) -> Tensor:
        seen = seen_vectors(z, live)
        return torch.where(seen, self._logits(torch.where(seen[:, None], z, 0)).argmax(dim=1), 0)

    def _decode(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self._trained(self.embed.weight))

    def _logits(self, z: Tensor) -> Tensor:
        weight = self._trained(self.proj.weight)
        dtype = torch.promote_types(z.dtype, weight.dtype)
        return F.linear(z.to(dtype), weight.to(dtype), self._trained(self.proj.bias).to(dtype))


def _flatten_convolution(_module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """The original's 1x1 convolution, ``(K, C, 1, 1)``, is a linear layer, ``(K, C)``."""
    weight = state_dict.get(prefix + "weight")
    if weight is not None and weight.ndim > 2 and weight[0, 0].numel() == 1:
        state_dict[prefix + "weight"] = weight.flatten(1)
