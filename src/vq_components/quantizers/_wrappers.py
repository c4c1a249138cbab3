"""Quantizers made of quantizers: in another width, stage by stage, or for groups of channels."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional import straight_through
from ._base import AbstractQuantizer, QuantizerOutput
from ._codebook import Codebook
from ._composite import CompositeQuantizer, StagedQuantizer, check_parts, check_types


class ProjectedQuantizer(CompositeQuantizer):
    """Runs a quantizer in a space of another width: ``dim -> quantizer.dim``, ``quantizer.dim_out -> dim``.

    ``quantized = W_out q(W_in z + b_in) + b_out``, with the loss, terms and indices of ``q``. A codebook of low width
    is used more evenly: the factorized codes of Yu et al., "Vector-quantized Image Modeling with Improved VQGAN"
    (2021), which they combine with ``distance="cosine"``. Both projections are trained by the gradient of the output,
    the first one by the loss as well. They compute in float32 whatever autocast says.

    Args:
        quantizer: any quantizer; its ``channel_dim`` is not used.
        dim: number of channels of the input and the output.
        channel_dim: where they are, 1 for ``(B, C, ...)``, -1 for channels last.

    Raises:
        ValueError: if ``channel_dim`` is 0.
        TypeError: if ``quantizer`` is none.

    Example:
        >>> from vq_components import VectorQuantizer
        >>> vq = ProjectedQuantizer(VectorQuantizer(1024, 8, distance="cosine"), dim=64)
        >>> quantized, indices, loss, terms = vq(torch.randn(2, 64, 4, 4))
        >>> quantized.shape, indices.shape, vq.codebook.shape
        (torch.Size([2, 64, 4, 4]), torch.Size([2, 4, 4]), torch.Size([1024, 64]))
    """

    _learns_from_output = True

    def __init__(self, quantizer: AbstractQuantizer, dim: int, *, channel_dim: int = 1) -> None:
        check_types([quantizer], "ProjectedQuantizer")
        super().__init__(
            dim, codebook_size=quantizer.codebook_size, channel_dim=channel_dim, index_shape=quantizer.index_shape
        )
        self.project_in = nn.Linear(dim, quantizer.dim)
        self.quantizer = quantizer
        self.project_out = nn.Linear(quantizer.dim_out, dim)

    @property
    def codebook(self) -> Tensor:
        """What the entries decode to, ``(K, dim)``, computed at each access."""
        return self._project_out(cast(Tensor, self.quantizer.codebook))

    def _quantize(self, z: Tensor, live: Tensor) -> QuantizerOutput:
        quantized, indices, loss, terms = self.quantizer._quantize(self._project_in(z), live)
        return QuantizerOutput(self._project_out(quantized).to(z.dtype), indices, loss, terms)

    def _encode(self, z: Tensor, live: Tensor) -> Tensor:
        return self.quantizer._encode(self._project_in(z), live)

    def _decode(self, indices: Tensor) -> Tensor:
        return self._project_out(self.quantizer._entries(indices))

    def _project_in(self, z: Tensor) -> Tensor:
        weight = self._trained(self.project_in.weight)
        dtype = torch.promote_types(z.dtype, weight.dtype)
        return F.linear(z.to(dtype), weight.to(dtype), self._trained(self.project_in.bias).to(dtype))

    def _project_out(self, quantized: Tensor) -> Tensor:
        # In the weight's own type, which is the codebook's, so that forward and decode round alike.
        weight = self._trained(self.project_out.weight)
        return F.linear(quantized.to(weight.dtype), weight, self._trained(self.project_out.bias))


class ResidualQuantizer(StagedQuantizer):
    """Quantizes what the stages before have left over, so that their entries add up.

    ``r_1 = z``, ``e_q = quantizer_q(r_q)``, ``r_{q+1} = r_q - sg[e_q]``, ``quantized = e_1 + ... + e_Q``: the residual
    vector quantizer of Zeghidour et al., "SoundStream" (2021), and Lee et al., "Autoregressive Image Generation using
    Residual Quantization" (2022). Each stage's loss is that of its own residual, and ``loss`` is their sum. The entries
    are detached in the residuals, so that the commitment term of every stage reaches ``z``; the gradient of the output
    goes to ``z`` once, straight through, whatever the stages' estimators are. Stages with ``init="data"`` start one
    update after the other, so that none starts from what another has just left.

    With ``dropout``, a training forward uses, with that probability, only the first ``n`` stages, ``n`` uniform in
    ``1, ..., Q``, so that the first stages' indices alone are a coarse code (quantizer dropout, SoundStream). All
    stages still run, on no live vector, so that processes may draw different numbers and still call the same
    collectives, and no stage counts what it was not used for. Indices of unused stages are -1, which
    :meth:`decode` leaves out of the sum: to decode the first ``n`` stages alone, set the others to -1.

    Args:
        quantizers: the stages, distinct modules of equal ``dim``, ``codebook_size`` and ``index_shape``; their
            ``channel_dim`` is not used.
        dropout: probability with which a training forward uses a random number of stages, in ``[0, 1]``.
        channel_dim: where the channels are, 1 for ``(B, C, ...)``, -1 for channels last.

    Raises:
        ValueError: if there is no stage, one occurs twice, they do not fit together, or one has parameters that only
            the output's gradient trains (project around the residual quantizer, not inside); if ``dropout`` is not in
            ``[0, 1]`` or ``channel_dim`` is 0.
        TypeError: if a stage is no quantizer, or there is one instead of a sequence.

    Note:
        ``terms["commitment"]`` and ``terms["codebook"]`` are sums over the stages, all others means over the stages in
        use. ``indices`` have the shape of ``z`` without channels, followed by ``Q``.

    Example:
        >>> from vq_components import VectorQuantizer
        >>> rvq = ResidualQuantizer([VectorQuantizer(256, 8) for _ in range(4)], dropout=0.5).eval()
        >>> quantized, indices, loss, terms = rvq(torch.randn(2, 8, 5))
        >>> indices.shape
        torch.Size([2, 5, 4])
        >>> coarse = torch.where(torch.arange(4) < 2, indices, -1)
        >>> torch.equal(rvq.decode(indices), quantized), rvq.decode(coarse).shape
        (True, torch.Size([2, 8, 5]))
    """

    def __init__(self, quantizers: Sequence[AbstractQuantizer], *, dropout: float = 0.0, channel_dim: int = 1) -> None:
        check_parts(quantizers, "ResidualQuantizer")
        if any(stage.dim != quantizers[0].dim or stage.dim_out != stage.dim for stage in quantizers):
            raise ValueError(
                f"ResidualQuantizer needs stages of one width, in and out, but got "
                f"{[(stage.dim, stage.dim_out) for stage in quantizers]}."
            )
        for number, stage in enumerate(quantizers):
            if any(getattr(module, "_learns_from_output", False) for module in stage.modules()):
                raise ValueError(
                    f"ResidualQuantizer gives the output's gradient to its input alone, but stage {number}, "
                    f"{type(stage).__name__}, has parameters that learn from it. "
                    f"Wrap the whole instead, as ProjectedQuantizer(ResidualQuantizer(...), dim)."
                )
        if not 0 <= dropout <= 1:
            raise ValueError(f"ResidualQuantizer takes dropout in [0, 1], but got {dropout}.")
        dim = quantizers[0].dim
        super().__init__(quantizers, dim=dim, dim_out=dim, channel_dim=channel_dim)
        self.dropout = dropout
        last = -1
        for stage in quantizers:
            codebooks = [module for module in stage.modules() if isinstance(module, Codebook)]
            for codebook in codebooks:
                codebook.stage += last + 1
            last = max([last, *(codebook.stage for codebook in codebooks)])

    def _quantize(self, z: Tensor, live: Tensor) -> QuantizerOutput:
        uses = self._draw_uses(z.device)
        residual, indices, outputs = z, [], []
        for stage, used in zip(self.quantizers, uses, strict=True):
            own = live & used
            # Zero where not live, as at the door: a vector that is not finite must not meet a zero gradient there.
            out = stage._quantize(torch.where(own[:, None], residual, 0), own)
            chosen = own.view(-1, *(1 for _ in stage.index_shape))
            indices.append(torch.where(chosen, out.indices, -1))
            outputs.append(out)
            residual = residual - torch.where(own[:, None], out.quantized.detach(), 0)
        stacked = torch.stack(indices, dim=1)
        # Added up in the codebooks' own type and order, as decode does.
        quantized = straight_through(z, self._entries(stacked).detach().to(z.dtype))
        sum_of_losses = torch.stack([out.loss for out in outputs]).sum()
        return QuantizerOutput(quantized, stacked, sum_of_losses, _stage_terms(outputs, uses))

    def _encode(self, z: Tensor, live: Tensor) -> Tensor:
        indices = []
        for stage in self.quantizers:
            indices.append(stage._encode(z, live))
            z = z - stage._entries(indices[-1]).to(z.dtype)
        return torch.stack(indices, dim=1)

    def _decode(self, indices: Tensor) -> Tensor:
        total = self.quantizers[0]._entries(indices[:, 0])
        for number, stage in enumerate(self.quantizers[1:], start=1):
            total = total + stage._entries(indices[:, number])
        return total

    def _draw_uses(self, device: torch.device) -> Tensor:
        """Which stages this forward uses, ``(Q,)`` bool."""
        number = torch.arange(len(self.quantizers), device=device)
        if not self.training or self.dropout == 0:
            return number >= 0
        last = torch.randint(len(self.quantizers), (), device=device)
        return (number <= last) | (torch.rand((), device=device) >= self.dropout)


class GroupedQuantizer(StagedQuantizer):
    """Splits the channels into groups and gives each to a quantizer of its own.

    ``z = (z_1, ..., z_G)``, ``quantized = (quantizer_1(z_1), ..., quantizer_G(z_G))``: product quantization, Jégou et
    al. (2011), in a network as van Balen & Levy, "PQ-VAE: Efficient Recommendation Using Quantized Embeddings" (2019).
    ``K`` entries in ``G`` groups stand for ``K^G`` vectors. ``loss`` and ``terms`` are means over the groups.

    Args:
        quantizers: the groups' quantizers in the order of the channels, distinct modules of equal ``codebook_size`` and
            ``index_shape``; the input has the sum of their ``dim`` channels. Their ``channel_dim`` is not used.
        channel_dim: where the channels are, 1 for ``(B, C, ...)``, -1 for channels last.

    Raises:
        ValueError: if there is no quantizer, one occurs twice, or they do not fit together; if ``channel_dim`` is 0.
        TypeError: if a part is no quantizer, or there is one instead of a sequence.

    Note:
        ``indices`` have the shape of ``z`` without channels, followed by ``G``; with residual quantizers as groups
        (Yang et al., "HiFi-Codec", 2023) by ``G, Q``.

    Example:
        >>> from vq_components import VectorQuantizer
        >>> pq = GroupedQuantizer([VectorQuantizer(256, 8), VectorQuantizer(256, 8)])
        >>> quantized, indices, loss, terms = pq(torch.randn(2, 16, 5))
        >>> quantized.shape, indices.shape
        (torch.Size([2, 16, 5]), torch.Size([2, 5, 2]))
    """

    _part_name = "group"

    def __init__(self, quantizers: Sequence[AbstractQuantizer], *, channel_dim: int = 1) -> None:
        check_parts(quantizers, "GroupedQuantizer")
        dim, dim_out = sum(part.dim for part in quantizers), sum(part.dim_out for part in quantizers)
        super().__init__(quantizers, dim=dim, dim_out=dim_out, channel_dim=channel_dim)

    def _quantize(self, z: Tensor, live: Tensor) -> QuantizerOutput:
        outputs = [part._quantize(piece, live) for part, piece in zip(self.quantizers, self._split(z), strict=True)]
        return QuantizerOutput(
            torch.cat([out.quantized for out in outputs], dim=1),
            torch.stack([out.indices for out in outputs], dim=1),
            torch.stack([out.loss for out in outputs]).mean(),
            {key: torch.stack([out.terms[key] for out in outputs]).mean() for key in _common_keys(outputs)},
        )

    def _encode(self, z: Tensor, live: Tensor) -> Tensor:
        pieces = zip(self.quantizers, self._split(z), strict=True)
        return torch.stack([part._encode(piece, live) for part, piece in pieces], dim=1)

    def _decode(self, indices: Tensor) -> Tensor:
        return torch.cat([part._entries(indices[:, n]) for n, part in enumerate(self.quantizers)], dim=1)

    def _split(self, z: Tensor) -> Sequence[Tensor]:
        return torch.split(z, [part.dim for part in self.quantizers], dim=1)


def _common_keys(outputs: Sequence[QuantizerOutput]) -> list[str]:
    return [key for key in outputs[0].terms if all(key in out.terms for out in outputs)]


def _stage_terms(outputs: Sequence[QuantizerOutput], uses: Tensor) -> dict[str, Tensor]:
    """Sums of the stages' errors, means of all else over the stages in use."""
    terms = {}
    for key in _common_keys(outputs):
        total = torch.where(uses, torch.stack([out.terms[key] for out in outputs]), 0).sum()
        terms[key] = total if key in ("commitment", "codebook") else total / uses.sum()
    return terms
