"""From logits to tokens in plain Python: one row, one token at a time."""

import math

import torch


def softmax(logits):
    """Probabilities of a list of logits, any of which may be -inf."""
    highest = max(logits)
    weights = [math.exp(logit - highest) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def filter_row(logits, *, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """The filtered list: divided by the temperature, ``-inf`` where a token is ruled out, one rule after the other."""
    size = len(logits)
    if temperature == 0:
        best = logits.index(max(logits))
        return [0.0 if token == best else -math.inf for token in range(size)]
    logits = [logit / temperature for logit in logits]
    if top_k is not None:
        least = sorted(logits, reverse=True)[min(top_k, size) - 1]
        logits = [logit if logit >= least else -math.inf for logit in logits]
    if top_p is not None:
        probabilities, kept, total = softmax(logits), set(), 0.0
        for token in sorted(range(size), key=lambda token: -logits[token]):
            if total < top_p or top_p == 1:
                kept.add(token)
            total += probabilities[token]
        logits = [logit if token in kept else -math.inf for token, logit in enumerate(logits)]
    if min_p is not None:
        probabilities = softmax(logits)
        least = min_p * max(probabilities)
        logits = [logit if p >= least else -math.inf for logit, p in zip(logits, probabilities, strict=True)]
    return logits


def pick(logits, uniform):
    """The token at ``uniform`` in ``[0, 1)`` along the line of all tokens' probabilities."""
    passed = 0.0
    for token, probability in enumerate(softmax(logits)):
        passed += probability
        if uniform < passed:
            return token
    raise AssertionError(f"{uniform} is not in [0, 1), or too near to 1 for this reference")


def pick_rows(logits, uniforms, **filters):
    """Tokens ``(B,)`` of a batch of logits ``(B, V)``, each row by itself."""
    rows = zip(logits.tolist(), uniforms.tolist(), strict=True)
    return torch.tensor([pick(filter_row(row, **filters), uniform) for row, uniform in rows])


def go_on(last_logits, tokens, uniforms, **filters):
    """``tokens`` ``(B, T)`` and one more per column of ``uniforms``; ``last_logits(tokens)`` are those of the next."""
    for step in range(uniforms.shape[1]):
        new = pick_rows(last_logits(tokens), uniforms[:, step], **filters)
        tokens = torch.cat([tokens, new[:, None]], dim=1)
    return tokens
