"""A prior under test: how to get logits and samples of it, and copies whose logits differ from token to token."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..prior import ConditionalPrior, MinGPT, generate, generate_windows
from ._compare import clone, differ
from ._engine import Kind

Values = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class PriorTraits:
    """What is true of a prior by design.

    Args:
        vocab_size: number of tokens that it predicts.
        length: longest sequence of tokens that it takes.
        predicts_next: whether logits at ``t`` are of the token after ``t``, given it; else of token ``t`` itself, given
            those before it.
        n_unmasked: number of first positions that see each other in both directions.
        conditions: ``(batch_size) -> values`` that are passed along; None if it takes none.
        guided: whether sampling knows ``guidance``.
        grid: height and width of the image that it was built for, where it can sample larger ones by windows.
        order: the way in which its sequences go through a grid: an object with ``apply``, from grids, or the same flat
            in raster order, to sequences, and ``undo``, back to raster order. None if there is no such object.
        dropout: shares that training drops of embeddings, of what each layer adds, and of attention weights, where it
            is built like the original.
        strict: also what this package promises beyond a correct prior, such as errors and initialization.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """

    vocab_size: int
    length: int
    predicts_next: bool = True
    n_unmasked: int = 0
    conditions: Callable[[int], Values] | None = None
    guided: bool = False
    grid: tuple[int, int] | None = None
    order: Any = None
    dropout: tuple[float, float, float] | None = None
    strict: bool = False
    rtol: float = 1e-3
    atol: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class PriorAdapter:
    """Functions that say how a prior is used. Only the first one is needed.

    Args:
        logits: ``(module, tokens, values) -> (B, T, V)``.
        loss: ``(module, tokens, values) -> the mean negative log-likelihood in nats per token``.
        generate: ``(module, prompt, new, values, settings) -> (B, T + new)``, where ``settings`` may have
            ``temperature`` (0: the likeliest token), ``top_k``, ``top_p``, ``min_p``, ``guidance``,
            ``allowed_tokens``, ``embeddings``, ``generator`` and ``progress``: those that a check needs, so take them
            with defaults, as in ``lambda module, prompt, new, values, settings: module.sample(prompt, new,
            temperature=settings.get("temperature", 1.0))``. ``temperature`` is needed; 0 makes samples comparable.
        settings: names of the settings that ``generate`` knows; no other than these and ``temperature`` is passed. A
            ``generator`` is the only source of randomness of a call that gets one; without it, it is torch's own.
        windows: ``(module, grid, window, batch_size, values, settings) -> (B, H, W)``.
        traits: ``(module) -> PriorTraits``, used where none are given.
    """

    logits: Callable[[Any, Tensor, Values], Tensor]
    loss: Callable[[Any, Tensor, Values], Tensor] | None = None
    generate: Callable[[Any, Tensor, int, Values, dict[str, Any]], Tensor] | None = None
    settings: tuple[str, ...] = ("temperature", "top_k", "top_p")
    windows: Callable[..., Tensor] | None = None
    traits: Callable[[Any], PriorTraits] | None = None


_ALL = ("temperature", "top_k", "top_p", "min_p", "guidance", "allowed_tokens", "embeddings", "generator", "progress")


def _own_logits(module: Any, tokens: Tensor, values: Values) -> Tensor:
    answer = module(tokens, values) if hasattr(module, "image_vocab") else module(tokens)
    logits: Tensor = getattr(answer, "logits", answer)
    return logits


def _own_loss(module: Any, tokens: Tensor, values: Values) -> Tensor:
    loss: Tensor = module(tokens, values).loss
    return loss


def _own_generate(module: Any, prompt: Tensor, new: int, values: Values, settings: dict[str, Any]) -> Tensor:
    return generate(module, prompt, max_new_tokens=new, conditions=values, **settings)


def _own_windows(
    module: Any,
    grid: tuple[int, int],
    window: tuple[int, int],
    batch_size: int,
    values: Values,
    settings: dict[str, Any],
) -> Tensor:
    return generate_windows(module, grid=grid, window=window, batch_size=batch_size, conditions=values, **settings)


def _own_adapter(module: Any) -> PriorAdapter:
    if not isinstance(module, (MinGPT, ConditionalPrior)):
        raise TypeError(
            f"How a {type(module).__name__} is used is not known, only how this package's priors are. "
            f"Pass adapter=, a function (module, tokens, values) -> logits, or a PriorAdapter."
        )
    conditional = hasattr(module, "image_vocab")
    excluded = {"embeddings"} if conditional else {"guidance"}
    if conditional and module.condition_dropout == 0:
        excluded.add("guidance")
    return PriorAdapter(
        logits=_own_logits,
        loss=_own_loss if conditional else None,
        generate=_own_generate,
        settings=tuple(name for name in _ALL if name not in excluded),
        windows=_own_windows if conditional else None,
        traits=_own_traits,
    )


def _own_traits(module: Any) -> PriorTraits:
    if hasattr(module, "image_vocab"):
        raise TypeError(
            "A conditional prior's traits tell how to make values of its conditions. "
            "Pass traits=PriorTraits(vocab_size=..., length=..., predicts_next=False, conditions=...)."
        )
    return PriorTraits(
        vocab_size=module.vocab_size, length=module.block_size, n_unmasked=module.n_unmasked, strict=True
    )


def inner(module: Any) -> Any:
    """The transformer inside of a prior, or the prior itself, if it is one."""
    return getattr(module, "gpt", module)


class PriorSubject:
    """A prior, how to use it, and what it declares.

    Args:
        prior: the module, which is copied for every check.
        name: what reports and test ids call it; its class's name unless told.
        adapter: a function ``(module, tokens, values) -> logits``, or a :class:`PriorAdapter`; needed unless it is this
            package's.
        traits: what it declares; needed unless it is a MinGPT, or the adapter knows.
        expected_failures: names of checks that must fail, each with the reason.
    """

    def __init__(
        self,
        prior: nn.Module,
        *,
        name: str | None = None,
        adapter: PriorAdapter | Callable[[Any, Tensor, Values], Tensor] | None = None,
        traits: PriorTraits | None = None,
        expected_failures: Mapping[str, str] | None = None,
    ) -> None:
        if adapter is None:
            adapter = _own_adapter(prior)
        self._source = prior
        self.name = name or type(prior).__name__
        self.adapter = adapter if isinstance(adapter, PriorAdapter) else PriorAdapter(logits=adapter)
        if traits is None and self.adapter.traits is not None:
            traits = self.adapter.traits(prior)
        if traits is None:
            raise TypeError(f"{type(prior).__name__} does not tell its traits. Pass traits=PriorTraits(...).")
        self.traits = traits
        if self.adapter.generate is not None and traits.length < self.shortest + 3:
            raise ValueError(
                f"Sampling is checked with three tokens behind a prompt of {self.shortest}, but got "
                f"length={traits.length}. Pass a prior of at least {self.shortest + 3} tokens."
            )
        self.expected_failures = dict(expected_failures or {})

    def fresh(self) -> Any:
        """A copy in training mode, as it was given."""
        return clone(self._source).train()

    def excited(self) -> Any:
        """A copy in evaluation mode, with noise on all parameters: every token and position makes a difference."""
        module = self.fresh().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.25 * torch.randn_like(parameter))
        return module

    @property
    def transformer(self) -> Any:
        """The part with embeddings, blocks and head, where it is built like the original's; else None."""
        gpt = inner(self._source)
        names = ("tok_emb", "pos_emb", "blocks", "ln_f", "head")
        return gpt if all(hasattr(gpt, name) for name in names) else None

    def tokens(self, batch: int, length: int | None = None) -> Tensor:
        """Random tokens ``(batch, length)``."""
        return torch.randint(self.traits.vocab_size, (batch, self.traits.length if length is None else length))

    def values(self, batch: int) -> Values:
        """Random values of the conditions."""
        return () if self.traits.conditions is None else self.traits.conditions(batch)

    def logits(self, module: Any, tokens: Tensor, values: Values = ()) -> Tensor:
        """Logits ``(B, T, V)``."""
        return self.adapter.logits(module, tokens, values)

    def next_logits(self, module: Any, tokens: Tensor, values: Values = ()) -> Tensor:
        """Logits ``(B, V)`` of what follows ``(B, T)``."""
        if self.traits.predicts_next:
            return self.logits(module, tokens, values)[:, -1]
        padded = torch.cat([tokens, tokens.new_zeros(len(tokens), 1)], dim=1)
        return self.logits(module, padded, values)[:, -1]

    def generate(self, module: Any, prompt: Tensor, new: int, values: Values, **settings: Any) -> Tensor:
        """Samples."""
        if self.adapter.generate is None:
            raise TypeError("no way to sample is known")
        return self.adapter.generate(module, prompt, new, values, settings)

    @property
    def shortest(self) -> int:
        """Number of tokens that a prompt needs."""
        return max(self.traits.n_unmasked, 1) if self.traits.predicts_next else 0

    def differ(self, actual: Tensor, expected: Tensor) -> str:
        """How far two values are apart, within the tolerance."""
        return differ(actual, expected, rtol=self.traits.rtol, atol=self.traits.atol)


def as_prior(prior: Any, **options: Any) -> PriorSubject:
    """A subject as it is, or one made of a prior."""
    return prior if isinstance(prior, PriorSubject) else PriorSubject(prior, **options)


PRIOR: Kind[PriorSubject] = Kind("prior", as_prior)


def can_generate(subject: PriorSubject) -> bool:
    """Whether it can be sampled from."""
    return subject.adapter.generate is not None


def takes_settings(subject: PriorSubject, settings: Mapping[str, Any]) -> bool:
    """Whether its adapter says that it can be sampled from with these."""
    return settings.keys() <= set(subject.adapter.settings)


def takes_embeddings(subject: PriorSubject) -> bool:
    """Whether embeddings can be put before its tokens."""
    return "embeddings" in inspect.signature(subject.fresh().forward).parameters
