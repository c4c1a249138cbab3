"""What the samplers share: reading sequences that grow, and choosing tokens."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..functional._sampling import draw, filter_logits
from ._conditional import ConditionalPrior
from ._mingpt import MinGPT
from ._thin import ThinTransformer

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
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be finite, but got {self.guidance}.")
        if self.guided and prior is None:
            raise ValueError("guidance needs a ConditionalPrior, but got a MinGPT. Wrap it in one.")
        if self.guided and prior is not None and prior.condition_dropout == 0:
            raise ValueError(
                "guidance compares with images without conditions, which this prior never saw. "
                "Train it with condition_dropout, for example 0.1, or leave guidance at 1."
            )
        if self.guided and prior is not None and not any(condition.takes_value for condition in prior.conditions):
            raise ValueError("guidance is toward conditions, but this prior has none that takes a value.")
        allowed = self.allowed_tokens
        if allowed is None:
            return
        if allowed.dtype != torch.bool or allowed.shape not in ((vocab_size,), (batch_size, vocab_size)):
            raise ValueError(
                f"allowed_tokens must be bool, True where a token may be sampled, of shape ({vocab_size},) or "
                f"({batch_size}, {vocab_size}), but got {allowed.dtype} of shape {tuple(allowed.shape)}."
            )
        if not bool(allowed.any(dim=-1).all()):
            raise ValueError("allowed_tokens must allow each sequence at least one token, but forbid all somewhere.")

    def _filter(self, logits: Tensor) -> Tensor:
        return filter_logits(logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)


def unpack_model(model: nn.Module) -> tuple[ConditionalPrior | None, MinGPT]:
    """The conditional prior, if it is one, and its transformer."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped: steps have too many shapes for it
    if isinstance(model, ConditionalPrior):
        return model, getattr(model.gpt, "_orig_mod", model.gpt)
    if isinstance(model, MinGPT):
        return None, model
    raise TypeError(
        f"Tokens are sampled from a MinGPT or a ConditionalPrior, but got {type(model).__name__}. "
        "Pass what a wrapper wraps, such as model.module."
    )


class Reader:
    """A transformer, and what it keeps of sequences that grow.

    Args:
        gpt: the transformer.
        batch_size: number of sequences.
        length: most positions that are kept.
        thin: the transformer for single new tokens, if it is not the same; readers may share it.
    """

    def __init__(self, gpt: MinGPT, *, batch_size: int, length: int, thin: ThinTransformer | None) -> None:
        self.gpt = gpt
        self.cache = gpt.new_cache(batch_size, min(length, gpt.block_size))
        self.thin = thin

    def logits(self, sequence: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """Logits ``(B, V)`` of what follows ``(B, T)``, which starts with what came last time.

        Only new tokens are read. Embeddings, the same each time, are put before the tokens.
        """
        first = 0 if embeddings is None else embeddings.shape[1]
        past = self.cache.length
        if first + sequence.shape[1] < self.gpt.n_unmasked:  # with every further token earlier positions still change
            features = self.gpt.features(sequence, embeddings=embeddings)
        elif past == 0:
            features = self.gpt.features(sequence, embeddings=embeddings, cache=self.cache)
        elif self.thin is not None and first + sequence.shape[1] == past + 1:
            return self.thin.logits(sequence[:, -1], self.cache)
        else:
            features = self.gpt.features(sequence[:, past - first :], cache=self.cache)
        logits: Tensor = self.gpt.head(features[:, -1])
        return logits


def thin_transformer(gpt: MinGPT, rows: int) -> ThinTransformer | None:
    """The faster way for single new tokens, where there is one; to be asked once it is in eval mode."""
    return ThinTransformer(gpt) if ThinTransformer.fits(gpt, rows) else None


def find_batch_size(
    batch_size: int | None,
    prompt: Tensor | None,
    embeddings: Tensor | None,
    conditions: Sequence[Tensor],
    *,
    default: int | None = None,
) -> int:
    """Number of sequences, which at least one argument tells (or it is the default), and all tell alike."""
    values = [conditions] if isinstance(conditions, Tensor) else conditions
    for value in values:
        if not isinstance(value, Tensor):
            raise TypeError(f"Conditions take tensors as their values, but got {type(value).__name__}.")
    batches = [batch for batch in (prompt, embeddings, *values) if batch is not None and batch.ndim > 0]
    sizes = {len(batch) for batch in batches} | ({batch_size} if batch_size is not None else set())
    if not sizes and default is not None:
        return default
    if len(sizes) != 1:
        raise ValueError(
            f"Sampling needs one number of sequences, from prompt, conditions, embeddings or batch_size, "
            f"but these say {sorted(sizes) or 'nothing'}. Pass batch_size, or tensors of one batch."
        )
    return sizes.pop()


def check_logits(logits: Tensor) -> None:
    """Raises if a logit is not a number; to be asked once, at the end, as it waits for the device."""
    if bool(logits.isnan().any()):
        raise ValueError(
            "The model's logits are not numbers (NaN), so the tokens sampled from them mean nothing. "
            "Look for NaN in its weights: training may have diverged."
        )


def with_progress(steps: Sequence[Any], progress: Progress | None) -> Iterable[Any]:
    """The steps, shown as they are taken if there is a way to."""
    if progress is None:
        return steps
    if not callable(progress):
        raise TypeError(
            f"progress is called with the steps and returns them, but got {progress!r}. Pass tqdm.tqdm, for example."
        )
    return progress(steps)


def draw_uniform(*shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Numbers in ``[0, 1)``, drawn where the generator is."""
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise TypeError(
            f"generator must be a torch.Generator, but got {type(generator).__name__}. "
            f"Pass torch.Generator().manual_seed(0), for example."
        )
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
