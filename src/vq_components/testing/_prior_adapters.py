"""How priors of other packages are called. None of these packages is needed to import this."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._prior_subject import PriorAdapter, PriorTraits, Values

Settings = dict[str, Any]


def _taming_generate(module: Any, prompt: Tensor, new: int, values: Values, settings: Settings) -> Tensor:
    """By ``sample_with_past``, which is defined next to the class, and returns the new tokens only."""
    sample = importlib.import_module(type(module).__module__).sample_with_past
    temperature = settings.get("temperature", 1.0)
    tokens = sample(prompt, module, new, temperature=temperature or 1.0, sample_logits=temperature > 0)
    return torch.cat([prompt, tokens], dim=1)


def _taming_traits(module: Any) -> PriorTraits:
    config = module.config
    return PriorTraits(vocab_size=config.vocab_size, length=module.block_size, n_unmasked=config.n_unmasked)


taming_prior = PriorAdapter(
    logits=lambda module, tokens, values: module(tokens)[0],
    loss=lambda module, tokens, values: module(tokens[:, :-1], targets=tokens[:, 1:].contiguous())[1],
    generate=_taming_generate,
    settings=("temperature",),  # its top_k and top_p are a function that transformers no longer has
    traits=_taming_traits,
)
"""For the original's ``GPT``, and its ``sample_with_past``."""


def _transformers_generate(module: Any, prompt: Tensor, new: int, values: Values, settings: Settings) -> Tensor:
    filters: Settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} | settings
    if filters["temperature"] == 0:
        filters = {"do_sample": False}
    tokens: Tensor = module.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, pad_token_id=0, **filters
    )
    return tokens


def _transformers_traits(module: Any) -> PriorTraits:
    return PriorTraits(vocab_size=module.config.vocab_size, length=module.config.max_position_embeddings)


transformers_prior = PriorAdapter(
    logits=lambda module, tokens, values: module(tokens).logits,
    loss=lambda module, tokens, values: module(tokens, labels=tokens).loss,
    generate=_transformers_generate,
    settings=("temperature", "top_k", "top_p", "min_p"),
    traits=_transformers_traits,
)
"""For causal language models of transformers. Their configuration must not name a token that ends a sequence."""


def _x_transformers_generate(module: Any, prompt: Tensor, new: int, values: Values, settings: Settings) -> Tensor:
    """Filters are functions of logits; here they follow the temperature, as everywhere else."""
    known = importlib.import_module(type(module).__module__)
    temperature: float = settings.get("temperature", 1.0)
    filters: list[Callable[[Tensor], Tensor]] = []
    if "top_k" in settings:
        filters.append(lambda logits: known.top_k(logits, k=settings["top_k"]))
    if "top_p" in settings:
        filters.append(lambda logits: known.top_p(logits, thres=settings["top_p"]))
    if "min_p" in settings:
        filters.append(lambda logits: known.min_p(logits, min_p=settings["min_p"]))

    def filtered(logits: Tensor) -> Tensor:
        logits = logits / temperature
        for each in filters:
            logits = each(logits)
        return logits * temperature

    tokens = module.generate(prompt, new, temperature=temperature, filter_logits_fn=filtered)
    return torch.cat([prompt, tokens], dim=1)


def _x_transformers_traits(module: Any) -> PriorTraits:
    return PriorTraits(vocab_size=module.net.num_tokens, length=module.max_seq_len)


x_transformers_prior = PriorAdapter(
    logits=lambda module, tokens, values: module.net(tokens),
    loss=lambda module, tokens, values: module(tokens),
    generate=_x_transformers_generate,
    settings=("temperature", "top_k", "top_p", "min_p"),
    traits=_x_transformers_traits,
)
"""For the ``AutoregressiveWrapper`` of x-transformers."""
