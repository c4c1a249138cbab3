"""What an object returned, read without an adapter: by names, else by types and shapes, and never by a guess."""

import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

# In small letters.
_INDICES = re.compile("indic|index|ids|codes?$|tokens?$")
_OUTPUTS = {"quantized", "quantize", "quant", "z_q", "zq", "z_quantized", "quantized_latents"}
_NO_LOSS = re.compile("perplexity|ppl|usage|entropy|norm|accuracy|temperature")


class _Found(NamedTuple):
    """A tensor of an answer, its place in it, and the last name on the way there, in small letters."""

    tensor: Tensor
    place: str
    name: str

    def __str__(self) -> str:
        return f"{self.place} {self.tensor.dtype} {tuple(self.tensor.shape)}"


class AnswerReader:
    """Finds the output, the indices and the loss in answers of one object, in whatever order and nesting.

    The output is a floating-point tensor that fits. Of several it is the one called as an output is, else the one with
    the shape of what was given, else the one in the place where an answer before had its output, else the one that is
    neither what was given nor one-hot. Indices are the first integer tensor, of several the first one called as indices
    are, or that is not one-hot. The loss is the number called so, else the only one, of the outermost ones if there are
    such.

    Args:
        what: the output's name in messages, which go on with the shape of what was given.
        remedy: what to do where it is not found.
    """

    def __init__(self, *, what: str, remedy: str) -> None:
        self.what = what
        self.remedy = remedy
        # Values are no help in a compiled call, or of an empty batch: places of what was found before.
        self._places: dict[str, str] = {}

    def read(self, answer: Any, given: Tensor, fits: Callable[[Tensor], bool]) -> tuple[Tensor, Tensor, Tensor]:
        """The three of an answer to what was given.

        Raises:
            TypeError: if there is none of the first two, or more than one could be meant; also if what may be a loss is
                no single number.
        """
        found = list(_tensors_in(answer))
        outputs = [each for each in found if each.tensor.is_floating_point() and fits(each.tensor)]
        indices = [each for each in found if not each.tensor.is_floating_point() and each.tensor.dtype != torch.bool]
        if not outputs or not indices:
            text = ", ".join(map(str, found)) or "no tensor"
            shape = tuple(given.shape)
            raise TypeError(f"no {self.what} {shape}, or no indices, in the answer ({text}): {self.remedy}")
        outputs = self._narrow(
            "output",
            outputs,
            lambda each: each.name in _OUTPUTS,
            lambda each: each.tensor.shape == given.shape,
            by_value=lambda each: not torch.equal(each.tensor, given) and not _is_one_hot(each.tensor),
        )
        if len(outputs) > 1:
            text = ", ".join(map(str, outputs))
            raise TypeError(f"{self.what} {tuple(given.shape)} may be any of {text}: {self.remedy}")
        indices = self._narrow(
            "indices",
            indices,
            lambda each: bool(_INDICES.search(each.name)),
            by_value=lambda each: not _is_one_hot(each.tensor),
        )
        return outputs[0].tensor, indices[0].tensor, self._find_loss(found, outputs[0])

    def _narrow(
        self, part: str, found: list[_Found], *tests: Callable[[_Found], bool], by_value: Callable[[_Found], bool]
    ) -> list[_Found]:
        """Those that pass each test that any passes: by value where the place of one before does not tell."""
        for test in (*tests, lambda each: each.place == self._places.get(part), by_value):
            if len(found) > 1:
                found = [each for each in found if test(each)] or found
        if part not in self._places and len(found) == 1:
            self._places[part] = found[0].place
        return found

    def _find_loss(self, found: list[_Found], output: _Found) -> Tensor:
        """The number called loss, else the one whose name has that in it, else the only one; 0 if there is none."""
        others = [each for each in found if each.tensor.is_floating_point() and each is not output]
        numbers = [each for each in others if each.tensor.numel() == 1]
        numbers = [each for each in numbers if "loss" in each.name or not _NO_LOSS.search(each.name)]
        for candidates in (
            [each for each in numbers if each.name == "loss"],
            [each for each in numbers if "loss" in each.name],
            numbers,
        ):
            candidates = [each for each in candidates if "." not in each.place] or candidates
            if len(candidates) > 1:
                text = ", ".join(each.place for each in candidates)
                raise TypeError(
                    f"{len(candidates)} single numbers in the answer, {text}, may be the loss: {self.remedy}"
                )
            if candidates:
                return candidates[0].tensor
        for each in others:
            if "loss" in each.name or (each.tensor.ndim == 1 and not each.name):
                raise TypeError(f"{each} is no single number, and there is no other loss: reduce it, or {self.remedy}")
        return output.tensor.new_zeros(())


def _is_one_hot(tensor: Tensor) -> bool:
    """Whether each row has a single 1 and else zeros."""
    ones = tensor.detach() == 1
    return bool((ones.sum(dim=-1) == 1).all()) and bool((tensor.detach()[~ones] == 0).all())


def _tensors_in(answer: Any, place: str = "", name: str = "") -> Iterator[_Found]:
    """All of them, in whatever nesting of tuples, lists, dicts and dataclasses."""
    if isinstance(answer, Tensor):
        yield _Found(answer, place or "the answer", name.lower())
    for key, value in _items(answer):
        own = key if isinstance(key, str) else ""
        yield from _tensors_in(value, f"{place}.{key}" if place else str(key), own or name)


def _items(answer: Any) -> list[tuple[Any, Any]]:
    """What an answer consists of, with names or numbers."""
    if isinstance(answer, dict):
        return list(answer.items())
    if is_dataclass(answer):
        return list(vars(answer).items())
    if isinstance(answer, (tuple, list)):
        return list(zip(getattr(answer, "_fields", range(len(answer))), answer, strict=True))
    return []
