"""Sampling of token sequences.

Example:
    >>> from vq_components import ConditionalPrior, MinGPT, generate
    >>> prior = ConditionalPrior(MinGPT(65, 16, n_layer=1, n_head=2, n_embd=32), image_vocab=64)
    >>> tokens = generate(prior, max_new_tokens=16, batch_size=3, top_k=10)
    >>> generate(prior, tokens[:, :8], max_new_tokens=8).shape  # other lower halves
    torch.Size([3, 16])
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._conditional import ConditionalPrior
from ._mingpt import MinGPT, check_tokens
from ._sampling import (
    Progress,
    Reader,
    Sampling,
    check_logits,
    draw_uniform,
    find_batch_size,
    sampling_mode,
    thin_transformer,
    unpack_model,
    with_progress,
)


def generate(
    model: MinGPT | ConditionalPrior,
    prompt: Tensor | None = None,
    *,
    max_new_tokens: int,
    batch_size: int | None = None,
    conditions: Sequence[Tensor] = (),
    embeddings: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    guidance: float = 1.0,
    allowed_tokens: Tensor | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Goes on with sequences of tokens: the prompt and what follows, ``(B, T + max_new_tokens)``.

    The model is in eval mode meanwhile; keys and values are cached outside of it. One uniform number per sequence and
    position is drawn at the beginning, and becomes a token by inverse CDF: batch and order do not matter. A grid is
    made of the sequence by ``tokens.view(B, h, w)``, or by :meth:`TokenOrder.undo`. Of the transformer, ``features``
    and ``head`` are called, not ``forward``, nor hooks on it as a whole.

    Args:
        model: a :class:`MinGPT`, or a :class:`ConditionalPrior`, whose image tokens are sampled.
        prompt: first tokens ``(B, T)``, such as the upper half of an image. A conditional prior needs none.
        max_new_tokens: number of tokens to sample.
        batch_size: number of sequences, where neither prompt nor conditions tell it.
        conditions: for a conditional prior, one value for each condition that takes one.
        embeddings: for a MinGPT, ``(B, E, n_embd)``, put before the prompt's.
        temperature: that of :func:`~vq_components.functional.filter_logits`; 0 always takes the likeliest token.
        top_k: number of likeliest tokens to keep.
        top_p: probability that the likeliest tokens to keep sum up to.
        min_p: least probability of a token to keep, as a share of the likeliest's.
        guidance: ``w`` in ``free + w * (given - free)``, logits without and with conditions, in one batch (Ho &
            Salimans 2022, "Classifier-Free Diffusion Guidance", whose w is this minus 1). Trained by condition_dropout.
        allowed_tokens: bool ``(V,)`` or ``(B, V)``, True where a token may be sampled.
        generator: source of the random numbers; torch's global one unless given.
        progress: called with an iterable of the steps, returns it: ``tqdm.tqdm`` will do.

    Raises:
        ValueError: if the sequence exceeds ``block_size``, an argument is not for this model, or its logits are NaN.
        TypeError: if the model is of another class, tokens are not integers, ``generator`` is none, or ``progress`` is
            no function.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, guidance, allowed_tokens)
    return _generate(
        model, prompt, sampling, max_new_tokens, conditions, embeddings, generator, progress, batch_size=batch_size
    )


def _generate(
    model: MinGPT | ConditionalPrior,
    prompt: Tensor | None,
    sampling: Sampling,
    max_new_tokens: int,
    conditions: Sequence[Tensor],
    embeddings: Tensor | None,
    generator: torch.Generator | None,
    progress: Progress | None,
    *,
    batch_size: int | None,
) -> Tensor:
    prior, gpt = unpack_model(model)
    batch = find_batch_size(batch_size, prompt, embeddings, conditions)
    if prompt is None:
        prompt = torch.zeros(batch, 0, dtype=torch.int64, device=gpt.tok_emb.weight.device)
    vocab_size = gpt.vocab_size if prior is None else prior.image_vocab
    _check_prompt(prompt, vocab_size, name="MinGPT" if prior is None else "ConditionalPrior")
    sampling.check(prior, vocab_size=vocab_size, batch_size=batch)
    prefix = _prefix(prior, prompt, conditions, embeddings, guided=sampling.guided)  # (B, P), or (2 B, P) if guided
    known, first = prefix.shape[1] + prompt.shape[1], 0 if embeddings is None else embeddings.shape[1]
    # A conditional prior never needs the last token as an input, in training neither.
    _check_length(first + known + max_new_tokens - (prior is not None), max_new_tokens, gpt.block_size)

    uniform = draw_uniform(batch, max_new_tokens, generator=generator, device=prompt.device)
    repeats = 1 + sampling.guided
    sequence = torch.cat([prefix, prompt.repeat(repeats, 1), prefix.new_zeros(len(prefix), max_new_tokens)], dim=1)
    with sampling_mode(model):
        thin = thin_transformer(gpt, len(sequence)) if max_new_tokens > 1 else None
        reader = Reader(gpt, batch_size=len(sequence), length=first + sequence.shape[1], thin=thin)
        for step in with_progress(range(max_new_tokens), progress):
            logits = reader.logits(sequence[:, : known + step], embeddings)
            tokens = sampling.choose(logits[:, :vocab_size], uniform[:, step])
            sequence[:, known + step] = tokens.repeat(repeats)
    if max_new_tokens > 0:
        check_logits(logits)
    return sequence[:batch, prefix.shape[1] :].clone()


def _check_prompt(prompt: Tensor, vocab_size: int, *, name: str) -> None:
    if prompt.ndim != 2:
        raise ValueError(f"generate takes a prompt of shape (B, T), but got {tuple(prompt.shape)}. Flatten a grid.")
    check_tokens(prompt, vocab_size, name=name)


def _prefix(
    prior: ConditionalPrior | None,
    prompt: Tensor,
    conditions: Sequence[Tensor],
    embeddings: Tensor | None,
    *,
    guided: bool,
) -> Tensor:
    """The tokens that come before the prompt's: those of conditions, or ``(B, 0)`` for a transformer alone."""
    if prior is not None:
        if embeddings is not None:
            raise ValueError("embeddings go before a MinGPT's tokens; a ConditionalPrior has conditions instead.")
        return prior.prefixes(prompt, conditions, guided=guided)
    if len(conditions) > 0:
        raise ValueError("conditions need a ConditionalPrior, but got a MinGPT. Wrap it in one.")
    if prompt.shape[1] == 0 and (embeddings is None or embeddings.shape[1] == 0):
        raise ValueError("A MinGPT goes on with at least one token: pass a prompt or embeddings.")
    return prompt[:, :0]


def _check_length(length: int, new: int, block_size: int) -> None:
    if new < 0:
        raise ValueError(f"max_new_tokens must not be negative, but got {new}.")
    if length > block_size:
        raise ValueError(
            f"generate would need {length} positions, conditions included, but the model's block_size is {block_size}. "
            f"Shorten the prompt or sample fewer tokens; for larger images, use generate_windows."
        )
