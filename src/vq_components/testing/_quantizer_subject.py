"""A quantizer under test: fresh copies of it, inputs for it, and its answers in one form."""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ._compare import backward, clone, differ, drawn, gap, state_difference, state_of
from ._engine import Kind, isolated
from ._quantizer_adapters import QuantizerAdapter, QuantizerResult, as_adapter, as_result, find_traits, revives_itself
from ._quantizer_recognition import recognize_codebook, warn_of_unchecked
from ._quantizer_traits import QuantizerTraits

_START = 0x57A7  # no seed that a user takes, as that of the checks


class QuantizerSubject:
    """A quantizer, how to use it, and what it declares.

    Args:
        quantizer: a module, which is copied for every check, or a function without arguments that builds one.
        name: what reports and test ids call it; its class's name unless told.
        adapter: a function ``(module, z) -> (quantized, indices, loss)``, or a :class:`QuantizerAdapter`; needed only
            where the answer's order and names do not tell.
        traits: what it declares; read from its attributes unless told.
        expected_failures: names of checks that must fail, each with the reason.
    """

    def __init__(
        self,
        quantizer: nn.Module | Callable[[], nn.Module],
        *,
        name: str | None = None,
        adapter: QuantizerAdapter | Callable[[Any, Tensor], tuple[Any, ...]] | None = None,
        traits: QuantizerTraits | None = None,
        expected_failures: Mapping[str, str] | None = None,
    ) -> None:
        self._source = quantizer
        self._started: Any = None
        sample = self.fresh()
        self.name = name or type(sample).__name__
        # A product of another number of rows may round in another way.
        self._projects = hasattr(sample, "project_out")
        self.adapter = as_adapter(adapter, sample)
        self.traits = find_traits(sample, self.adapter) if traits is None else traits
        if self.traits.codebook_size is not None and self.traits.codebook_size < 4:
            raise ValueError(
                f"Checks need a codebook of at least 4 entries to tell right from wrong, "
                f"but got {self.traits.codebook_size}. Pass a quantizer with more."
            )
        told = isinstance(adapter, QuantizerAdapter) and (adapter.codebook is not None or adapter.traits is not None)
        answers = True
        if not (told or self.traits.strict or self.traits.codebook_size is None):
            answers = self._recognize_codebook()
        if answers:  # else a check tells what is missing first
            warn_of_unchecked(self.name, self.adapter, self.traits)
        self.expected_failures = dict(expected_failures or {})

    def _recognize_codebook(self) -> bool:
        """Looks for one whose rows come out, whatever it is called; several stages or heads have none in common.

        Returns whether it can be called as declared, as far as that was tried.
        """
        named, codebook, answers = self.adapter.codebook, None, True
        if not self.traits.composite and self.traits.index_shape == ():
            codebook, answers = named, False
            with isolated(), contextlib.suppress(Exception):
                module = self.started(training=False)
                result = self.call(module, self.input(48))
                answers = True
                rows, outputs = self.flat(result.indices).long(), self.vectors(result.quantized)
                learned = named is not None and (
                    named(module).requires_grad or bool(gap(named(module), named(self.fresh())))
                )
                codebook = recognize_codebook(module, rows, outputs, self.traits, named, learned=learned)
        self.adapter = replace(self.adapter, codebook=codebook)
        return answers

    def fresh(self) -> Any:
        """A copy in training mode, as it was given."""
        source = self._source
        if not isinstance(source, nn.Module):
            made = source()
            return made.train() if isinstance(made, nn.Module) else made
        try:
            return clone(source).train()
        except RuntimeError as error:
            raise TypeError(
                f"A {type(source).__name__} cannot be copied by copy.deepcopy: {error} Pass a function that builds one."
            ) from error

    def copy(self, module: Any) -> Any:
        """A copy, also of what ``copy.deepcopy`` cannot copy, by its state."""
        try:
            return clone(module)
        except RuntimeError:  # a tensor with a graph is kept, as torch's old weight_norm does
            twin = self.fresh()
            twin.load_state_dict(module.state_dict())
            return twin.train(module.training)

    def started(self, *, training: bool = True) -> Any:
        """A copy that has seen training batches, three at least, all of whose statistics are applied.

        Stages may start one after the other: there are more batches than stages.
        """
        if self._started is None:
            self._started = self._start()
        try:
            module = clone(self._started)
        except RuntimeError:  # as in copy; what it keeps beside its state must stay
            module = self._start()
        return module.train(training)

    def _start(self) -> Any:
        with drawn(_START):  # the same one, whichever check is the first to ask
            module = self.fresh()
            for _ in range(2 + math.prod(self.traits.index_shape)):
                self.call(module, self.input(8 * self.some))
            self.update(module)
        return module

    def at_stages(self) -> dict[str, Any]:
        """A copy at each stage of life."""
        stages = {"fresh": self.fresh(), "after training forwards": self.fresh(), "updated": self.started()}
        for _ in range(2):
            self.call(stages["after training forwards"], self.input(8 * self.some))
        return stages

    def update(self, module: Any) -> None:
        """Applies pending statistics, where there are such."""
        if self.traits.two_phase:
            module.update_()

    @property
    def some(self) -> int:
        """A number of vectors that is no multiple of anything."""
        return 15

    @property
    def modes(self) -> tuple[bool, ...]:
        """Training and evaluation, as far as both are deterministic."""
        return (False,) if self.traits.stochastic else (True, False)

    def least_index(self, *, training: bool) -> int:
        """The smallest index that may come: -1 for stages that a random training forward leaves out, else 0."""
        return -1 if training and self.traits.stochastic and self.traits.index_shape else 0

    @property
    def dim_out(self) -> int:
        """Number of channels that come out."""
        return self.traits.dim if self.traits.dim_out is None else self.traits.dim_out

    @property
    def space(self) -> tuple[int, ...]:
        """Sizes of the home layout behind batch and channels: as few dimensions as may be."""
        return (5, 3, 2)[: min(self.traits.space)]

    def to_layout(self, z: Tensor) -> Tensor:
        """Channels last to where they belong."""
        moved = z.movedim(-1, self._channel_dim(z.ndim))
        return moved.contiguous()

    def _channel_dim(self, ndim: int) -> int:
        dim = self.traits.channel_dim
        return dim if -ndim <= dim < ndim else -1

    def input(self, count: int, space: tuple[int, ...] | None = None) -> Tensor:
        """Random vectors, ``count`` of them (rounded up to full batches) in the home layout, or in another one."""
        space = self.space if space is None else space
        batch = -(-count // max(int(torch.tensor(space).prod()), 1)) if space else count
        return self.to_layout(torch.randn(batch, *space, self.traits.dim))

    def from_vectors(self, vectors: Tensor) -> Tensor:
        """Vectors ``(N, D)`` as an input, one per batch item."""
        ones = [1] * len(self.space)
        return self.to_layout(vectors.reshape(len(vectors), *ones, self.traits.dim))

    def vectors(self, output: Tensor) -> Tensor:
        """An input or output as vectors ``(N, D)``."""
        moved = output.movedim(self._channel_dim(output.ndim), -1)
        return moved.reshape(-1, moved.shape[-1])

    def positions(self, z: Tensor) -> torch.Size:
        """The shape of an input without its channels, which is a mask's."""
        return z.movedim(self.traits.channel_dim, -1).shape[:-1]

    def flat(self, indices: Tensor) -> Tensor:
        """Indices as ``(N, *index_shape)``."""
        return indices.reshape(-1, *self.traits.index_shape)

    def call(self, module: Any, z: Tensor, mask: Tensor | None = None) -> QuantizerResult:
        """Calls it, and reads its answer."""
        if mask is None:
            return as_result(self.adapter.call(module, z))
        if self.adapter.masked is None:
            raise TypeError("no way to pass a mask is known: give the adapter masked=")
        return as_result(self.adapter.masked(module, z, mask))

    def call_copy(self, module: Any, z: Tensor, mask: Tensor | None = None, *, seed: int = 1) -> QuantizerResult:
        """Calls a copy, with a known random state, so that the module itself stays as it is."""
        with drawn(seed):
            return self.call(self.copy(module), z, mask)

    def input_gradient(self, module: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient at the input of a weighted sum of all outputs and the loss, and the loss."""
        z = z.clone().requires_grad_()
        result = self.call_copy(module, z)
        cotangent = torch.linspace(-1.0, 1.0, result.quantized.numel()).view(result.quantized.shape)
        backward((result.quantized * cotangent).sum() + result.loss.reshape(()))
        return torch.zeros_like(z) if z.grad is None else z.grad, result.loss.detach().reshape(())

    def codebook(self, module: Any) -> Tensor:
        """Its entries ``(K, D)``."""
        if self.adapter.codebook is None:
            raise TypeError("no codebook is known")
        return self.adapter.codebook(module).detach()

    def encode(self, module: Any, z: Tensor) -> Tensor:
        """Its indices, without the rest."""
        if self.adapter.encode is None:
            raise TypeError("no way to encode is known")
        return self.adapter.encode(module, z)

    def decode(self, module: Any, indices: Tensor, like: Tensor) -> Tensor:
        """The vectors of indices that stand for an input of the shape of ``like``."""
        if self.adapter.decode is None:
            raise TypeError("no way to decode is known")
        return self.adapter.decode(module, indices, like.shape)

    def differ(self, actual: Tensor, expected: Tensor) -> str:
        """How far two values that must be the same are apart; bit by bit if strict."""
        if (self.traits.strict and not self._projects) or not actual.is_floating_point():
            return gap(actual, expected)
        return self.about(actual, expected)

    def about(self, actual: Tensor, expected: Tensor) -> str:
        """How far two values are apart, within the tolerance."""
        return differ(actual, expected, rtol=self.traits.rtol, atol=self.traits.atol)

    def results_differ(self, actual: QuantizerResult, expected: QuantizerResult) -> str:
        """The same for two answers of one layout."""
        return "; ".join(
            f"{name}: {text}"
            for name, text in {
                "indices": gap(self.flat(actual.indices), self.flat(expected.indices)),
                "quantized": self.differ(actual.quantized, expected.quantized),
                "loss": self.about(actual.loss.reshape(()), expected.loss.reshape(())),
            }.items()
            if text
        )

    def states_differ(self, actual: Any, expected: Any, *, exact: bool = False) -> str:
        """The same for the states of two modules."""
        tolerance = {} if exact else {"rtol": self.traits.rtol, "atol": self.traits.atol}
        return state_difference(state_of(actual), state_of(expected), **tolerance)


def as_quantizer(quantizer: Any, **options: Any) -> QuantizerSubject:
    """A subject as it is, or one made of a quantizer."""
    return quantizer if isinstance(quantizer, QuantizerSubject) else QuantizerSubject(quantizer, **options)


QUANTIZER: Kind[QuantizerSubject] = Kind("quantizer", as_quantizer)


def has_codebook(subject: QuantizerSubject) -> bool:
    """Whether its entries can be read."""
    return subject.adapter.codebook is not None


NEEDS_CODEBOOK = (has_codebook, "a codebook: none was found, so the adapter's codebook=")


def of_one_codebook(needs: Callable[[QuantizerSubject], str]) -> Callable[[QuantizerSubject], str]:
    """What a check needs, and nothing of a composite, which does not have it."""
    return lambda subject: "" if subject.traits.composite else needs(subject)


def has_setter(subject: QuantizerSubject) -> bool:
    """Whether its entries can be read, and replaced."""
    return has_codebook(subject) and hasattr(subject.fresh(), "set_codebook_")


def has_revival(subject: QuantizerSubject) -> bool:
    """Whether it has entries of its own that can be revived, not those of quantizers inside of it."""
    return revives_itself(subject.fresh())


def has_decode(subject: QuantizerSubject) -> bool:
    """Whether its indices can be turned into vectors."""
    return subject.adapter.decode is not None


def has_encode(subject: QuantizerSubject) -> bool:
    """Whether it gives indices alone, which can be turned into vectors."""
    return subject.adapter.encode is not None and has_decode(subject)
