"""From logits to tokens."""

import torch
from torch import Tensor

from ._adversarial import to_full_precision

# Beyond this and its inverse a temperature is taken as 0 and as infinite: logits would overflow.
_NO_TEMPERATURE = 1e-30


def filter_logits(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Logits of a sharper distribution: divided by ``temperature``, and ``-inf`` where a token is ruled out.

    The filters apply one after the other, each to what the one before it left, renormalized: ``top_k`` keeps the ``k``
    likeliest tokens and all that tie with the last of them; ``top_p`` the smallest set of likeliest tokens whose
    probabilities sum up to ``p`` at least ("nucleus", Holtzman et al. 2020); ``min_p`` those at least ``p`` times as
    likely as the likeliest (Nguyen et al. 2024). The likeliest token always stays.

    Args:
        logits: ``(..., V)``, any may be ``-inf``.
        temperature: positive, or 0 for the limit: all but the likeliest token (the first of several) are ruled out.
        top_k: at least 1; more than ``V`` is as ``V``. None to keep all.
        top_p: in ``(0, 1]``. None to keep all.
        min_p: in ``[0, 1]``. None to keep all.

    Returns:
        New logits of the same shape, float32 for half types. ``softmax`` makes them probabilities.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
        >>> filter_logits(logits, top_k=3, top_p=0.7).softmax(dim=-1)
        tensor([0.0000, 0.0000, 0.4286, 0.5714])
    """
    _check_filters(temperature, top_k, top_p, min_p)
    logits = to_full_precision(logits)
    if temperature < _NO_TEMPERATURE:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    logits = logits / min(temperature, 1 / _NO_TEMPERATURE)
    if top_k is not None:
        smallest = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p is not None and top_p < 1:
        logits = logits.masked_fill(_outside_nucleus(logits, top_p), -torch.inf)
    if min_p is not None:
        probability = logits.softmax(dim=-1)
        logits = logits.masked_fill(probability < min_p * probability.amax(dim=-1, keepdim=True), -torch.inf)
    return logits


def _outside_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Which tokens are not among the likeliest that sum up to ``top_p``."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    outside = probability.cumsum(dim=-1) - probability >= top_p  # what likelier tokens sum up to
    return torch.zeros_like(outside).scatter(-1, order, outside)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Tokens ``(...)`` from logits ``(..., V)``: the inverse of their cumulative distribution at ``uniform`` ``(...)``.

    The token is a function of its own logits and its own number in ``[0, 1)``: what else is in the batch, or has been
    drawn before, does not matter.
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[..., -1:]
    token = (cumulative <= uniform[..., None].to(cumulative.dtype) * total).sum(dim=-1)
    last = (cumulative < total).sum(dim=-1)  # the last one that is possible; rounding may reach behind it
    return torch.minimum(token, last)


def _check_filters(temperature: float, top_k: int | None, top_p: float | None, min_p: float | None) -> None:
    if not temperature >= 0:
        raise ValueError(f"temperature must be positive, or 0 for the likeliest token, but got {temperature}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, but got {top_k}. Pass None to keep all tokens.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], but got {top_p}. Pass None to keep all tokens.")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"min_p must be in [0, 1], but got {min_p}. Pass None to keep all tokens.")
