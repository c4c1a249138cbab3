"""Blocks of the transformer, under the parameter names of the original."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._cache import KeyValueCache


class Attend(NamedTuple):
    """Which positions see which: the ``mask`` ``(t, T)`` if there is one, else the past, or else everything."""

    mask: Tensor | None
    causal: bool


def plan_attention(new: int, *, past: int, n_unmasked: int, device: torch.device) -> Attend:
    """Which of ``past + new`` positions the ``new`` ones see."""
    if past == 0 and n_unmasked <= 1:
        return Attend(None, causal=True)
    if new == 1 or past + new <= n_unmasked:
        return Attend(None, causal=False)
    query = torch.arange(past, past + new, device=device)[:, None]
    key = torch.arange(past + new, device=device)
    return Attend((key <= query) | ((query < n_unmasked) & (key < n_unmasked)), causal=False)


class SelfAttention(nn.Module):
    """``proj(softmax(q k^T / sqrt(D)) v)`` in ``n_head`` heads of width ``D``, ``(B, T, C)`` in and out."""

    def __init__(self, n_embd: int, n_head: int, *, attn_pdrop: float, resid_pdrop: float) -> None:
        super().__init__()
        self.key = nn.Linear(n_embd, n_embd)
        self.query = nn.Linear(n_embd, n_embd)
        self.value = nn.Linear(n_embd, n_embd)
        self.proj = nn.Linear(n_embd, n_embd)
        self.resid_drop = nn.Dropout(resid_pdrop)
        self.attn_pdrop = attn_pdrop
        self.n_head = n_head

    def forward(self, x: Tensor, attend: Attend, *, cache: KeyValueCache | None, index: int) -> Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:2], self.n_head, x.shape[2] // self.n_head).transpose(1, 2)  # (B, heads, T, D)
            for layer in (self.query, self.key, self.value)
        )
        if cache is not None:
            k, v = cache.append(index, k, v)
        h = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=attend.mask,
            dropout_p=self.attn_pdrop if self.training else 0.0,
            is_causal=attend.causal,
        )
        result: Tensor = self.resid_drop(self.proj(h.transpose(1, 2).flatten(2)))
        return result


class Block(nn.Module):
    """Attention and a two-layer perceptron, each on normalized input and added to it, ``(B, T, C)`` in and out."""

    def __init__(self, n_embd: int, n_head: int, *, attn_pdrop: float, resid_pdrop: float) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(n_embd)
        self.ln2 = nn.LayerNorm(n_embd)
        self.attn = SelfAttention(n_embd, n_head, attn_pdrop=attn_pdrop, resid_pdrop=resid_pdrop)
        self.mlp = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd), nn.Dropout(resid_pdrop)
        )

    def forward(self, x: Tensor, attend: Attend, *, cache: KeyValueCache | None, index: int) -> Tensor:
        x = x + self.attn(self.ln1(x), attend, cache=cache, index=index)
        result: Tensor = x + self.mlp(self.ln2(x))
        return result
