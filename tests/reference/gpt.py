"""A transformer in NumPy float64: slow, one head and one position at a time, plain to compare with the papers."""

import math

import numpy as np


def logits(weights, tokens, *, n_head, n_unmasked=0, embeddings=None):
    """Logits ``(E + T, V)`` of one sequence: GPT-2 (Radford et al. 2019) under the original VQ-GAN's parameter names.

    ``weights`` maps names to arrays, ``tokens`` is a list, ``embeddings`` is ``(E, C)`` and comes first.
    """
    x = [weights["tok_emb.weight"][token] for token in tokens]
    if embeddings is not None:
        x = [*embeddings, *x]
    x = np.array([vector + weights["pos_emb"][0, i] for i, vector in enumerate(x)])
    for layer in range(sum(name.endswith("ln1.weight") for name in weights)):
        own = {
            name.removeprefix(f"blocks.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"blocks.{layer}.")
        }
        x = x + attend(own, normalize(own, "ln1", x), n_head=n_head, n_unmasked=n_unmasked)
        hidden = affine(own, "mlp.0", normalize(own, "ln2", x))
        x = x + affine(own, "mlp.2", gelu(hidden))
    return normalize(weights, "ln_f", x) @ weights["head.weight"].T


def attend(own, x, *, n_head, n_unmasked):
    """``proj(softmax(q k^T / sqrt(D)) v)``, position by position, each over the list of those that it sees."""
    q, k, v = (affine(own, f"attn.{name}", x) for name in ("query", "key", "value"))
    mixed = np.zeros_like(x)
    for head in np.split(np.arange(x.shape[1]), n_head):
        for i in range(len(x)):
            seen = [j for j in range(len(x)) if sees(i, j, n_unmasked)]
            scores = [q[i, head] @ k[j, head] / math.sqrt(len(head)) for j in seen]
            shares = np.exp(np.array(scores) - max(scores))
            shares /= shares.sum()
            for share, j in zip(shares, seen, strict=True):
                mixed[i, head] += share * v[j, head]
    return affine(own, "attn.proj", mixed)


def sees(i, j, n_unmasked):
    """Whether position ``i`` sees ``j``: the past and itself, and all of the first ``n`` if it is one of them."""
    return j <= i or (i < n_unmasked and j < n_unmasked)


def affine(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def normalize(weights, name, x):
    centered = x - x.mean(axis=1, keepdims=True)
    scale = np.sqrt((centered**2).mean(axis=1, keepdims=True) + 1e-5)
    return centered / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x):
    return x * np.vectorize(lambda value: 0.5 * (1 + math.erf(value / math.sqrt(2))))(x)
