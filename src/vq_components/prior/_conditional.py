"""A prior over the tokens of images, given conditions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._conditions import Condition, StartToken, Window
from ._mingpt import MinGPT, check_tokens


class PriorOutput(NamedTuple):
    """What :class:`ConditionalPrior` returns, the same in training and in evaluation."""

    logits: Tensor
    """Of the image's tokens, one to one: ``(B, T, image_vocab)``, those of token ``t`` given all before it."""
    loss: Tensor
    """Mean negative log-likelihood in nats per token, a float32 scalar: call ``backward()`` on it."""
    bits_per_token: Tensor
    """The same in bits, detached: log it. A uniform guess has ``log2(image_vocab)``."""


class ConditionalPrior(nn.Module):
    """Autoregressive prior over an image's tokens, ``p(s | c) = prod_t p(s_t | s_<t, c)``.

    The conditions' tokens, in their order, come before the image's; a single transformer sees both. Logits and loss
    are the image's alone, over its own vocabulary.

    Tokens of the image are ``[0, image_vocab)`` to the transformer. Those of the conditions follow, each condition in a
    range of its own; with ``offset=False`` all share one range, as in the original. With ``condition_dropout`` there is
    one token more, the last one, for "no condition". :meth:`vocab_size` adds them up.

    Args:
        gpt: the transformer. Its block must hold the conditions' tokens and all but the last one of the image's.
        image_vocab: number of the image's tokens ``K``, the size of its tokenizer's codebook.
        conditions: at least one, such as :class:`StartToken`, :class:`ClassLabel`, :class:`SpatialTokens` or
            :class:`Coordinates`.
        offset: whether each condition has token numbers of its own.
        pkeep: share of the image's input tokens that training keeps. The others are replaced by random ones, so that
            the prior learns to go on after a mistake; targets stay.
        condition_dropout: share of the images whose conditions are all left out in training, which classifier-free
            guidance needs (Ho & Salimans 2022).

    Raises:
        ValueError: from the constructor, if a number is out of range or the transformer's vocabulary is too small; from
            a call, if a shape does not fit, the block is too short, or (on a CPU) a token is out of range.
        TypeError: from the constructor, if a condition is none; from a call, if tokens are not integers or a value is
            no tensor.

    References:
        Esser, Rombach, Ommer (2021), "Taming Transformers for High-Resolution Image Synthesis": ``s`` are its ``s``,
        the conditions' tokens its ``r``; ``pkeep`` is in its code alone.

    Example:
        >>> from vq_components import ClassLabel, ConditionalPrior, MinGPT
        >>> conditions = (ClassLabel(10),)
        >>> vocab_size = ConditionalPrior.vocab_size(image_vocab=64, conditions=conditions)
        >>> gpt = MinGPT(vocab_size, block_size=16, n_layer=2, n_head=2, n_embd=32)
        >>> prior = ConditionalPrior(gpt, image_vocab=64, conditions=conditions)
        >>> tokens, labels = torch.randint(64, (8, 4, 4)), torch.randint(10, (8,))
        >>> logits, loss, bits_per_token = prior(tokens, (labels,))
        >>> logits.shape
        torch.Size([8, 16, 64])
    """

    def __init__(
        self,
        gpt: MinGPT,
        *,
        image_vocab: int,
        conditions: Sequence[Condition] = (StartToken(),),
        offset: bool = True,
        pkeep: float = 1.0,
        condition_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_conditions(conditions)
        if len(conditions) == 0:
            raise ValueError("ConditionalPrior needs something before the first token: pass StartToken() at least.")
        if image_vocab < 1:
            raise ValueError(f"ConditionalPrior needs a positive image_vocab, but got {image_vocab}.")
        if not (0 <= pkeep <= 1 and 0 <= condition_dropout <= 1):
            raise ValueError(
                f"pkeep and condition_dropout are shares in [0, 1], but got {pkeep} and {condition_dropout}."
            )
        needed = self.vocab_size(
            image_vocab=image_vocab, conditions=conditions, offset=offset, condition_dropout=condition_dropout
        )
        if gpt.vocab_size < needed:
            raise ValueError(
                f"These conditions and image_vocab={image_vocab} need a transformer with vocab_size={needed}, "
                f"but got {gpt.vocab_size}. ConditionalPrior.vocab_size() gives the number."
            )
        self.gpt = gpt
        self.image_vocab = image_vocab
        self.conditions = tuple(conditions)
        self.offset = offset
        self.pkeep = pkeep
        self.condition_dropout = condition_dropout
        self._no_condition = needed - 1

    @staticmethod
    def vocab_size(
        *, image_vocab: int, conditions: Sequence[Condition], offset: bool = True, condition_dropout: float = 0.0
    ) -> int:
        """Number of tokens that a transformer for this prior needs; arguments as in the constructor."""
        _check_conditions(conditions)
        sizes = [condition.vocab_size for condition in conditions]
        tokens = image_vocab + sum(sizes) if offset else max([image_vocab, *sizes])
        return tokens + (condition_dropout > 0)

    def forward(self, tokens: Tensor, conditions: Sequence[Tensor] = ()) -> PriorOutput:
        """Logits and likelihood of images.

        Args:
            tokens: the images' tokens, a grid ``(B, h, w)`` in raster order, or ``(B, T)`` in any
                (:class:`TokenOrder`).
            conditions: one value for each condition that takes one, in the constructor's order.
        """
        if tokens.ndim not in (2, 3) or 0 in tokens.shape[1:]:
            raise ValueError(
                f"ConditionalPrior takes tokens (B, T) or (B, h, w), but got {tuple(tokens.shape)}. "
                f"Several for each position, of a residual or grouped quantizer, become a sequence by flatten(1)."
            )
        check_tokens(tokens, self.image_vocab, name="ConditionalPrior")
        tokens = tokens.flatten(1).long()
        inputs, dropped = tokens, None
        if self.training:
            inputs, dropped = self._replace_tokens(tokens), self._choose_dropped(tokens)
        prefix = self.prefix(tokens, conditions, dropped=dropped)
        sequence = torch.cat([prefix, inputs[:, :-1]], dim=1)
        logits = self.gpt(sequence)[:, prefix.shape[1] - 1 :, : self.image_vocab]
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
        return PriorOutput(logits, loss, loss.detach() / math.log(2))

    def prefix(
        self,
        like: Tensor,
        conditions: Sequence[Tensor] = (),
        *,
        dropped: Tensor | None = None,
        window: Window | None = None,
    ) -> Tensor:
        """Tokens ``(B, P)`` of all conditions, as they come before the image's.

        Args:
            like: the image's tokens ``(B, T)``, for the number of images and the device.
            conditions: as in :meth:`forward`; in a window, without those that follow it.
            dropped: bool ``(B,)``, True for images whose conditions say nothing.
            window: the part of a larger image that is sampled.
        """
        given = [condition for condition in self.conditions if _is_given(condition, window)]
        if isinstance(conditions, Tensor) or len(conditions) != len(given):
            names = ", ".join(type(condition).__name__ for condition in given)
            came = "a tensor" if isinstance(conditions, Tensor) else len(conditions)
            raise ValueError(
                f"ConditionalPrior takes a tuple of {len(given)} values, one for each of its conditions "
                f"({names or 'none takes one'}), but got {came}. "
                + ("Pass conditions=(value, ...)." if given else "Leave conditions out.")
            )
        values = iter(conditions)
        parts, first = [], self.image_vocab if self.offset else 0
        for condition in self.conditions:
            value = next(values) if _is_given(condition, window) else None
            if window is not None:
                value = condition.at(value, window, like=like)
            part = condition.encode(value, like=like) + first
            if dropped is not None and condition.takes_value:
                part = torch.where(dropped[:, None], self._no_condition, part)
            parts.append(part)
            first += condition.vocab_size if self.offset else 0
        prefix = torch.cat(parts, dim=1)
        if self.gpt.n_unmasked > prefix.shape[1]:
            raise ValueError(
                f"The transformer's first n_unmasked={self.gpt.n_unmasked} positions see each other, but only "
                f"{prefix.shape[1]} of them are the conditions': the image's tokens would see what they predict. "
                f"Build it with n_unmasked={prefix.shape[1]} at most; a window of a smaller grid has fewer conditions."
            )
        return prefix

    def prefixes(
        self, like: Tensor, conditions: Sequence[Tensor], *, guided: bool, window: Window | None = None
    ) -> Tensor:
        """:meth:`prefix`; if guided, ``(2 B, P)``, the second half without conditions."""
        prefix = self.prefix(like, conditions, window=window)
        if not guided:
            return prefix
        dropped = torch.ones(len(like), dtype=torch.bool, device=like.device)
        return torch.cat([prefix, self.prefix(like, conditions, dropped=dropped, window=window)])

    def _choose_dropped(self, tokens: Tensor) -> Tensor | None:
        if self.condition_dropout == 0:
            return None
        return torch.rand(len(tokens), device=tokens.device) < self.condition_dropout

    def _replace_tokens(self, tokens: Tensor) -> Tensor:
        if self.pkeep == 1:
            return tokens
        kept = torch.rand(tokens.shape, device=tokens.device) < self.pkeep
        return torch.where(kept, tokens, torch.randint_like(tokens, self.image_vocab))


def _check_conditions(conditions: Sequence[Condition]) -> None:
    """Raises unless these are conditions, built, in a sequence."""
    if isinstance(conditions, Condition):
        raise TypeError(f"conditions are a tuple, but got {conditions!r} alone. Pass ({conditions!r},).")
    for condition in conditions:
        if not isinstance(condition, Condition):
            raise TypeError(
                f"conditions are a tuple of conditions, built, but got {condition!r}. "
                "Pass for example (ClassLabel(10),)."
            )


def _is_given(condition: Condition, window: Window | None) -> bool:
    """Whether the caller passes a value for this condition; a window's place follows from the window."""
    return condition.takes_value and not (window is not None and condition.follows_window)
