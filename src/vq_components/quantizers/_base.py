"""What all quantizers share: layout, dtype and checks, once at the door."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..functional._codes import check_indices
from ._checks import check_index_shape, check_mask, check_vectors
from ._health import CodebookHealth, codebook_health
from ._schedule import Schedule, UpdateHandle


class QuantizerOutput(NamedTuple):
    """What a quantizer returns, the same in training and in evaluation."""

    quantized: Tensor
    """The entries that stand for the input, in its shape and dtype; the gradient goes to the input."""
    indices: Tensor
    """Which entries these are, ``int64``, in the input's shape without channels; -1 at masked positions."""
    loss: Tensor
    """Weighted scalar, at least float32: add it to the training loss as it is."""
    terms: dict[str, Tensor]
    """Detached, unweighted scalars for the log: the parts of ``loss``, perplexity and usage of this batch."""


class AbstractQuantizer(nn.Module, ABC):
    """Base of all quantizers: takes any layout and dtype to vectors ``(N, D)`` and back.

    A variant implements :meth:`_quantize` and :meth:`_decode` on vectors, and :meth:`_encode` if its
    :meth:`_quantize` keeps statistics. ``forward``, ``encode`` and ``decode`` are final.

    Args:
        dim: number of channels ``C`` of the input.
        codebook_size: number of entries ``K`` (of each stage, in a composite).
        dim_out: number of channels of the output; ``dim`` unless told.
        channel_dim: where the channels are in the input, 1 for ``(B, C, H, W)``, -1 for channels last.
        index_shape: what one vector's indices add to the index tensor's shape: ``()``, or ``(Q,)`` for ``Q`` stages.

    Raises:
        ValueError: if ``channel_dim`` is 0, the batch.
    """

    # The entries of ``codebook`` for health(): the nearest is chosen, or they only lie among the vectors, or in another
    # space; None if they are not learned.
    _entries_are: Literal["nearest", "among", "apart"] | None = None
    # What health() advises, before a smaller codebook, where few entries are chosen.
    _more_use = ""

    def __init__(
        self,
        dim: int,
        *,
        codebook_size: int,
        dim_out: int | None = None,
        channel_dim: int = 1,
        index_shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        if channel_dim == 0:
            raise ValueError(
                f"{type(self).__name__} needs the channels in another dimension than the batch, which is dimension 0, "
                f"but got channel_dim=0. Pass 1 for (B, C, H, W), -1 for channels last."
            )
        self.dim = dim
        self.dim_out = dim if dim_out is None else dim_out
        self.codebook_size = codebook_size
        self.channel_dim = channel_dim
        self.index_shape = index_shape
        self._schedule = Schedule()
        self._frozen = False

    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Replaces every vector of ``z`` by codebook entries.

        Args:
            z: continuous latents with ``dim`` channels along ``channel_dim``, such as ``(B, C)``, ``(B, C, T)``,
                ``(B, C, H, W)`` or ``(B, C, T, H, W)``. Half types are computed in float32 whatever autocast says.
            mask: bool, True where a position is live, in the input's shape without channels. Masked positions
                influence nothing, get index -1 and are zero in the output and in the gradient.

        Returns:
            A :class:`QuantizerOutput`.

        Raises:
            ValueError: if the shape of ``z`` or ``mask`` does not fit.
            TypeError: if ``z`` is no floating point tensor or ``mask`` is not bool.
        """
        self._check_input(z, mask)
        flat, live = self._flatten(z, mask)
        with torch.autocast(z.device.type, enabled=False):
            quantized, indices, loss, terms = self._quantize(flat, live)
        if mask is not None:
            quantized = torch.where(live[:, None], quantized, 0)
            indices = torch.where(live.view(-1, *(1 for _ in self.index_shape)), indices, -1)
        indices = indices.view(*self._space(z), *self.index_shape)
        return QuantizerOutput(self._unflatten(quantized, z), indices, loss, terms)

    @torch.no_grad()
    def encode(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """Indices of the entries that stand for ``z``; counts nothing and changes nothing, in any mode.

        Args:
            z: as in :meth:`forward`.
            mask: as in :meth:`forward`.

        Returns:
            ``int64`` indices in the input's shape without channels, followed by ``index_shape``.

        Raises:
            ValueError: if the shape of ``z`` or ``mask`` does not fit.
            TypeError: if ``z`` is no floating point tensor or ``mask`` is not bool.
        """
        self._check_input(z, mask)
        flat, live = self._flatten(z, mask)
        with torch.autocast(z.device.type, enabled=False):
            indices = self._encode(flat, live)
        if mask is not None:
            indices = torch.where(live.view(-1, *(1 for _ in self.index_shape)), indices, -1)
        return indices.view(*self._space(z), *self.index_shape)

    def decode(self, indices: Tensor) -> Tensor:
        """The vectors that ``indices`` stand for, with the channels along ``channel_dim``.

        Args:
            indices: integers as :meth:`encode` returns them; -1 gives zeros.

        Returns:
            Vectors in the codebook's dtype. For the same call shape they are bit-equal to ``forward(z).quantized``
            until the codebook's next update (after conversion to the dtype of ``z``).

        Raises:
            ValueError: if an index is outside ``[-1, codebook_size)`` or the shape does not end in ``index_shape``.
            TypeError: if ``indices`` are not integers.
        """
        name = type(self).__name__
        depth = len(self.index_shape)
        check_indices(indices, self.codebook_size, name=name)
        check_index_shape(indices, self.index_shape, name=name)
        space = indices.shape[: indices.ndim - depth]
        flat = indices.long().reshape(-1, *self.index_shape)
        with torch.autocast(indices.device.type, enabled=False):
            vectors = self._entries(flat)
        channel_dim = self.channel_dim if self.channel_dim >= 0 else len(space) + 1 + self.channel_dim
        return vectors.view(*space, self.dim_out).movedim(-1, channel_dim).contiguous()

    def health(
        self, latents: Tensor | Iterable[Tensor], mask: Tensor | Iterable[Tensor] | None = None
    ) -> CodebookHealth:
        """Says how the codebook does on latents, a window of several for each entry, and in plain words what is wrong.

        Nothing is counted or changed, in any mode. On several processes all must call it, each with its own latents.

        Args:
            latents: a batch as :meth:`forward` takes it, or an iterable of batches: the window.
            mask: of the batch as in :meth:`forward`, or an iterable with one for each batch.

        Returns:
            A :class:`CodebookHealth`: usage, perplexity, dead and duplicate entries, norms, and the reasons.

        Raises:
            ValueError: if a shape does not fit, or there are more batches than masks or the other way round.
            TypeError: if latents are no floating point tensors or a mask is not bool.

        Example:
            >>> from vq_components import VectorQuantizer
            >>> vq = VectorQuantizer(2, 4)
            >>> vq.set_codebook_(torch.tensor([[0.015] * 4, [-0.015] * 4]))
            >>> health = vq.health(8.05 + 0.1 * torch.randn(1000, 4))
            >>> health.reasons[0].partition(":")[0]
            'all codes within radius 0.03, latents at 16.1'
        """
        return codebook_health(self, latents, mask)

    def update_(self) -> None:
        """Applies what the training forwards since the last update have counted, as one update of the codebook.

        Once this has been called, only further calls apply updates; until then, and where
        :meth:`update_after` is not used either, every training forward first applies what the one before it counted.
        """
        for part in self._parts():
            part.update_()

    def update_after(self, optimizer: Any) -> UpdateHandle:
        """Applies one update after every step of ``optimizer``, from now on.

        Args:
            optimizer: a ``torch.optim.Optimizer``, or a wrapper that holds one as ``.optimizer``.

        Returns:
            A handle; ``handle.remove()`` ends it. A copied or unpickled module is not tied to the optimizer: register
            again when a training is resumed.

        Raises:
            TypeError: if there is no optimizer to hook into.
        """
        schedules = [module._schedule for module in self.modules() if isinstance(module, AbstractQuantizer)]
        return UpdateHandle(optimizer, schedules, self._update)

    def freeze(self) -> None:
        """Keeps the codebook as it is: from now on ``encode`` and ``decode`` give what they give now.

        In training too, nothing starts, counts, updates or revives, what was pending waits, and no parameter receives a
        gradient from this quantizer, whatever its ``requires_grad``; the gradient of the input is as before. Quantizers
        inside this one are frozen as well. ``set_codebook_`` and ``load_state_dict`` still work. Like
        ``requires_grad``, this is not in the ``state_dict``: freeze again in a resumed run. DistributedDataParallel
        must be told by ``requires_grad_(False)`` in addition, before it wraps the model.
        """
        for module in self.modules():
            if isinstance(module, AbstractQuantizer):
                module._frozen = True

    def unfreeze(self) -> None:
        """Ends :meth:`freeze`, for the quantizers inside this one too."""
        for module in self.modules():
            if isinstance(module, AbstractQuantizer):
                module._frozen = False

    @property
    def frozen(self) -> bool:
        """Whether :meth:`freeze` keeps the codebook as it is."""
        return self._frozen

    def _trained(self, parameter: Tensor) -> Tensor:
        """``parameter`` in at least float32, without a gradient while this quantizer is frozen."""
        wide = parameter.to(torch.promote_types(parameter.dtype, torch.float32))
        return wide.detach() if self._frozen else wide

    def _update(self) -> None:
        """What :meth:`update_` and the optimizer's hook do, without choosing between them."""
        for part in self._parts():
            part._update()

    def _parts(self) -> Iterator["AbstractQuantizer"]:
        """The quantizers right inside this one, those in containers included."""
        modules: list[nn.Module] = list(self.children())
        while modules:
            module = modules.pop(0)
            if isinstance(module, AbstractQuantizer):
                yield module
            else:
                modules.extend(module.children())

    @abstractmethod
    def _quantize(self, z: Tensor, live: Tensor) -> QuantizerOutput:
        """Quantizes vectors ``(N, D)``, at least float32; rows not ``live`` ``(N,)`` must influence nothing."""

    @abstractmethod
    def _decode(self, indices: Tensor) -> Tensor:
        """Vectors ``(N, D_out)`` of indices ``(N, *index_shape)`` in ``[0, K)``; of several some may be -1, not all."""

    def _entries(self, indices: Tensor) -> Tensor:
        """Vectors ``(N, D_out)`` of indices ``(N, *index_shape)`` in ``[-1, K)``, zero where all of them are -1."""
        if not self.index_shape:
            return torch.where((indices >= 0)[:, None], self._decode(indices.clamp(min=0)), 0)
        return torch.where((indices >= 0).flatten(1).any(dim=1)[:, None], self._decode(indices), 0)

    def _encode(self, z: Tensor, live: Tensor) -> Tensor:
        """Indices ``(N, *index_shape)`` of vectors ``(N, D)``, without side effects."""
        return self._quantize(z, live).indices

    def _compared(self, z: Tensor) -> Tensor:
        """What of vectors ``(N, D)`` is compared with the entries."""
        return z

    def _check_input(self, z: Tensor, mask: Tensor | None) -> None:
        name = type(self).__name__
        check_vectors(z, dim=self.dim, channel_dim=self.channel_dim, name=name)
        if mask is not None:
            check_mask(mask, self._space(z), name=name)

    def _space(self, z: Tensor) -> torch.Size:
        """Shape of ``z`` without channels."""
        shape = list(z.shape)
        shape.pop(self.channel_dim)
        return torch.Size(shape)

    def _flatten(self, z: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Vectors ``(N, D)`` in at least float32, zero where masked, and which of them are live, ``(N,)``."""
        flat = z.movedim(self.channel_dim, -1).reshape(-1, self.dim)
        flat = flat.to(torch.promote_types(z.dtype, torch.float32))
        if mask is None:
            return flat, torch.ones(flat.shape[0], dtype=torch.bool, device=z.device)
        live = mask.reshape(-1)
        return torch.where(live[:, None], flat, 0), live

    def _unflatten(self, vectors: Tensor, z: Tensor) -> Tensor:
        """Back to the dtype and layout of ``z``; contiguous if ``z`` was."""
        vectors = vectors.to(z.dtype).view(*self._space(z), self.dim_out).movedim(-1, self.channel_dim)
        return vectors.contiguous() if z.is_contiguous() else vectors
