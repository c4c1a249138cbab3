"""What quantizers made of quantizers share."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ._base import AbstractQuantizer
from ._revival import DeadCodeRevival


class CompositeQuantizer(AbstractQuantizer):
    """Hands the settings of dead-code revival on to the quantizers inside."""

    @property
    def revival(self) -> DeadCodeRevival | None:
        """That of the first quantizer inside which has codes to revive. Setting it, or None, sets those of all.

        Raises:
            TypeError: when it is set to something else.
            ValueError: when it is set to settings, and nothing inside has codes to revive.
        """
        reviving = self._reviving()
        return reviving[0].revival if reviving else None

    @revival.setter
    def revival(self, revival: DeadCodeRevival | None) -> None:
        reviving = self._reviving()
        if revival is not None and not reviving:
            raise ValueError(
                f"{type(self).__name__} hands revival on to the quantizers inside, but none of them has entries that "
                f"can be revived. Leave it None."
            )
        for part in reviving:
            part.revival = revival

    def _reviving(self) -> list[Any]:
        parts = [module for module in self.modules() if isinstance(module, AbstractQuantizer)]
        return [part for part in parts if not isinstance(part, CompositeQuantizer) and hasattr(part, "revival")]


class StagedQuantizer(CompositeQuantizer):
    """What the quantizers with several indices per vector share."""

    def __init__(self, quantizers: Sequence[AbstractQuantizer], *, dim: int, dim_out: int, channel_dim: int) -> None:
        first = quantizers[0]
        super().__init__(
            dim,
            codebook_size=first.codebook_size,
            dim_out=dim_out,
            channel_dim=channel_dim,
            index_shape=(len(quantizers), *first.index_shape),
        )
        self.quantizers: Sequence[AbstractQuantizer] = nn.ModuleList(quantizers)  # type: ignore[assignment]

    @property
    def codebook(self) -> Tensor:
        """Does not exist: every part has one of its own.

        Raises:
            TypeError: always.
        """
        # No AttributeError: Module would replace it by one that says that there is no such attribute.
        raise TypeError(
            f"{type(self).__name__} has no single codebook. Read those of its parts: "
            f"[part.codebook for part in quantizer.quantizers]."
        )


def check_parts(quantizers: Sequence[AbstractQuantizer], name: str) -> None:
    """Raises unless these can be the parts of one quantizer."""
    if isinstance(quantizers, AbstractQuantizer):
        raise TypeError(f"{name} takes a sequence of quantizers, but got one. Pass a list of them.")
    check_types(quantizers, name)
    if not quantizers:
        raise ValueError(f"{name} needs at least one quantizer, but got none.")
    if len({id(part) for part in quantizers}) < len(quantizers):
        raise ValueError(f"{name} needs distinct quantizers, but got one of them twice. Build each on its own.")
    shapes = [(part.codebook_size, part.index_shape) for part in quantizers]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"{name} needs quantizers of one codebook_size and index_shape, but got {shapes}.")


def check_types(quantizers: Sequence[AbstractQuantizer], name: str) -> None:
    """Raises unless these are quantizers."""
    for part in quantizers:
        if not isinstance(part, AbstractQuantizer):
            came = f"the class {part.__name__}" if isinstance(part, type) else type(part).__name__
            raise TypeError(
                f"{name} takes quantizers, but got {came}. Pass one, built, such as VectorQuantizer(512, 8)."
            )
