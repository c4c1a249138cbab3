"""What a quantizer declares about itself, so that a correct one raises no alarm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class QuantizerTraits:
    """What is true of a quantizer by design. Checks that a trait rules out are left out; others are told by it.

    Args:
        dim: number of channels that go in.
        codebook_size: number of entries ``K``; indices are in ``[0, K)``.
        dim_out: number of channels that come out; ``dim`` unless told.
        channel_dim: where the channels are.
        space: how many dimensions may follow batch and channels: ``(0, 1, 2)`` for ``(B, C)``, ``(B, C, T)`` and
            ``(B, C, H, W)``.
        index_shape: what one vector's indices add to the index tensor's shape, ``(Q,)`` for ``Q`` stages.
        stochastic: the training output is drawn at random. Evaluation must not be.
        composite: an output vector is made of several entries, or is a function of the index: no row of a codebook.
        distance: ``"euclidean"`` or ``"cosine"`` if the entry is the nearest one; None if it is chosen otherwise.
        estimator: what the output's gradient does at the input: ``"straight_through"`` hands it on unchanged,
            ``"other"`` gives some gradient, ``"none"`` gives none.
        trains_codebook: whether the *output's* gradient reaches parameters, as in Gumbel-softmax or with projections.
        learns: whether training by the loss alone brings the output to the data; not so where a projection back learns
            from the decoder.
        commitment_weight: if told, the loss is ``commitment_weight * mean((z - sg[e])^2)`` plus the next term, with
            ``z`` as it comes in and ``e`` as it comes out. A loss that is exactly 0 in evaluation is not compared.
        codebook_weight: if told, weight of ``mean((sg[z] - e)^2)``.
        decay: if told, the codebook follows the vectors by moving averages of this decay, in ``update_()``; this is
            checked of what is ``two_phase`` and has ``set_codebook_(entries)``.
        eps: of these averages.
        initial_spread: if told, root mean square of a new codebook's values about the mean entry.
        revives_after: if told, how many updates without a vector make an entry dead, from the fair share on; this is
            checked of what has this package's ``revival``.
        starts_from_data: the first training batch gives the codebook its entries, vectors of the batch; checked as
            ``decay`` is.
        mask: whether it is called with a mask as well, True where a position is live. Masked positions then have index
            -1 and zeros, and no influence, NaN in their place included.
        two_phase: training forwards count, and the object's own method ``update_()`` applies, as that of this
            package's quantizers does. A wrapper around one hands the call on.
        half: whether half-precision inputs are for it.
        batched_loss: whether the loss is a mean over positions, that copies of a batch do not change.
        reference: ``(module, vectors (N, D)) -> (quantized, indices, loss)``: what it should compute, written
            plainly with torch's autograd; values and gradients are compared with it.
        functions: functions to check as well, by the names and with the arguments that they have in
            ``vq_components.functional``: any of ``nearest_code``, ``code_entropies``, ``orthogonality_loss`` and
            ``kmeans``.
        strict: what can be bit-equal must be; and there are ``encode``, ``decode`` and ``terms``, as of this package's
            quantizers.
        rtol: relative tolerance where not strict, and of losses and gradients.
        atol: absolute tolerance, likewise.
    """

    dim: int
    codebook_size: int | None = None
    dim_out: int | None = None
    channel_dim: int = 1
    space: tuple[int, ...] = (0, 1, 2, 3)
    index_shape: tuple[int, ...] = ()
    stochastic: bool = False
    composite: bool = False
    distance: Literal["euclidean", "cosine"] | None = None
    estimator: Literal["straight_through", "other", "none"] = "straight_through"
    trains_codebook: bool = False
    learns: bool = True
    commitment_weight: float | None = None
    codebook_weight: float | None = None
    decay: float | None = None
    eps: float = 1e-5
    initial_spread: float | None = None
    revives_after: int | None = None
    starts_from_data: bool = False
    mask: bool = False
    two_phase: bool = False
    half: bool = True
    batched_loss: bool = True
    reference: Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
    functions: Mapping[str, Callable[..., Any]] | None = None
    strict: bool = False
    rtol: float = 1e-4
    atol: float = 1e-5

    def __post_init__(self) -> None:
        """Refuses what no quantizer can be like: a check of it would be left out, or mean something else.

        Raises:
            ValueError: if a value is none of those that are meant, or out of range.
            TypeError: if a tuple, or a function, is something else.
        """
        for name, meant in _MEANT.items():
            value = getattr(self, name)
            if value not in meant:
                raise ValueError(f"QuantizerTraits takes {name} of {', '.join(map(repr, meant))}, but got {value!r}.")
        for name in ("dim", "codebook_size", "dim_out"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"QuantizerTraits takes a positive {name}, but got {value}.")
        if self.decay is not None and not 0 <= self.decay <= 1:
            raise ValueError(f"QuantizerTraits takes a decay in [0, 1], but got {self.decay}.")
        for name in ("space", "index_shape"):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                raise TypeError(f"QuantizerTraits takes a tuple as {name}, but got {value!r}. Pass ({value},).")
        _check_functions(self.functions or {})


def _check_functions(functions: Mapping[str, Any]) -> None:
    for name, function in functions.items():
        if name not in _FUNCTIONS:
            raise ValueError(f"QuantizerTraits takes functions named {', '.join(_FUNCTIONS)}, but got {name!r}.")
        if not callable(function):
            raise TypeError(f"QuantizerTraits takes a function as {name}, but got {function!r}.")


_FUNCTIONS = ("nearest_code", "code_entropies", "orthogonality_loss", "kmeans")
_MEANT: dict[str, tuple[Any, ...]] = {
    "distance": ("euclidean", "cosine", None),
    "estimator": ("straight_through", "other", "none"),
}
