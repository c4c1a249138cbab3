"""What the samplers share: from features to tokens."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..functional._sampling import draw, filter_logits
from ._cache import KeyValueCache
from ._conditional import ConditionalPrior
from ._linear import linear
from ._mingpt import MinGPT

Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Sampling:
    """How logits become a token."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    guidance: float
    allowed_tokens: Tensor | None

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Tokens ``(B,)`` at ``uniform`` ``(B,)``, from logits ``(B, V)``, or ``(2 B, V)`` under guidance.

        Under guidance, the second half of the logits are those without conditions.
        """
        if self.guided:
            given, free = logits.chunk(2)
            logits = free + self.guidance * (given - free)
        if self.allowed_tokens is not None:
            logits = logits.masked_fill(~self.allowed_tokens.to(logits.device), -torch.inf)
        return draw(self._filter(logits), uniform)

    @property
    def guided(self) -> bool:
        """Whether images without conditions run along."""
        return self.guidance != 1

    def check(self, prior: ConditionalPrior | None, *, vocab_size: int, batch_size: int) -> None:
        """Raises if a setting is out of range, or not for this model."""
        self._filter(torch.zeros(1))
        if self.guided and prior is None:
            raise ValueError("guidance needs a ConditionalPrior, but got a MinGPT. Wrap it in one.")
        if self.guided and prior is not None and prior.condition_dropout == 0:
            raise ValueError(
                "guidance compares with images without conditions, which this prior never saw. "
                "Train it with condition_dropout, for example 0.1, or leave guidance at 1."
            )
        allowed = self.allowed_tokens
        if allowed is None:
            return
        if allowed.dtype != torch.bool or allowed.shape not in ((vocab_size,), (batch_size, vocab_size)):
            raise ValueError(
                f"allowed_tokens must be bool, True where a token may be sampled, of shape ({vocab_size},) or "
                f"({batch_size}, {vocab_size}), but got {allowed.dtype} of shape {tuple(allowed.shape)}."
            )
        if not bool(allowed.any(dim=-1).all()):
            raise ValueError("allowed_tokens must allow at least one token, but all are False.")

    def _filter(self, logits: Tensor) -> Tensor:
        return filter_logits(logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)


def unpack_model(model: nn.Module) -> tuple[ConditionalPrior | None, MinGPT]:
    """The conditional prior, if it is one, and its transformer."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped: steps have too many shapes for it
    if isinstance(model, ConditionalPrior):
        return model, getattr(model.gpt, "_orig_mod", model.gpt)
    if isinstance(model, MinGPT):
        return None, model
    raise TypeError(f"Tokens are sampled from a MinGPT or a ConditionalPrior, but got {type(model).__name__}.")


def last_features(gpt: MinGPT, sequence: Tensor, *, cache: KeyValueCache, embeddings: Tensor | None = None) -> Tensor:
    """Features ``(B, 1, n_embd)`` at the last position of ``(B, T)``; what the cache does not hold yet is computed."""
    first = 0 if embeddings is None else embeddings.shape[1]
    if first + sequence.shape[1] < gpt.n_unmasked:  # with every further token earlier positions still change
        return gpt.features(sequence, embeddings=embeddings)[:, -1:]
    if cache.length == 0:
        return gpt.features(sequence, embeddings=embeddings, cache=cache)[:, -1:]
    return gpt.features(sequence[:, cache.length - first :], cache=cache)[:, -1:]


def to_logits(gpt: MinGPT, prior: ConditionalPrior | None, features: Tensor) -> Tensor:
    """Logits ``(B, V)`` of the tokens to sample, from features ``(B, 1, n_embd)``."""
    logits = linear(gpt.head, features)[:, 0]
    return logits if prior is None else logits[:, : prior.image_vocab]


def draw_uniform(*shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Numbers in ``[0, 1)``, drawn where the generator is."""
    source = device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=source).to(device)


@contextlib.contextmanager
def sampling_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, autograd off; afterwards every module as it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
