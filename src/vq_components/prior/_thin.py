"""One more token of a few sequences, on a CPU, as fast as the memory gives the weights.

There, ``x W^T`` of a few rows is left to a single thread, and a step through a dozen layers is a thousand small calls.
So sampling has the weights as batches of slices, which are views, in products that all threads share.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._blocks import Block, SelfAttention
from ._cache import KeyValueCache
from ._mingpt import MinGPT

_MOST_ROWS = 16
_PERCEPTRON = [nn.Linear, nn.GELU, nn.Linear, nn.Dropout]
# A module of any other class may do more than what is done here with its weights.
_PLAIN = {MinGPT, Block, SelfAttention, nn.LayerNorm, nn.Embedding, nn.ModuleList, nn.Sequential, *_PERCEPTRON}


class ThinTransformer:
    """What :class:`MinGPT` computes in eval mode, for a single new position of at most 16 sequences."""

    def __init__(self, gpt: MinGPT) -> None:
        self.gpt = gpt
        self.layers = [_Layer(cast(Block, block)) for block in gpt.blocks]
        self.head = _Product([gpt.head])

    @staticmethod
    def fits(gpt: MinGPT, rows: int) -> bool:
        """Whether it is right, and faster, for this transformer."""
        perceptrons: list[nn.Sequential] = [block.mlp for block in gpt.blocks]  # type: ignore[misc]
        return (
            rows <= _MOST_ROWS
            and all(_is_plain(module) for module in gpt.modules())
            and all([type(module) for module in mlp] == _PERCEPTRON for mlp in perceptrons)
            and all(mlp[1].approximate == "none" for mlp in perceptrons)
            # A tensor of another class brings products of its own.
            and all(type(p) is nn.Parameter and p.device.type == "cpu" for p in gpt.parameters())
            and all(p.dtype in (torch.float32, torch.float64) for p in gpt.parameters())
            and not torch.is_autocast_enabled("cpu")
        )

    def logits(self, tokens: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits ``(B, V)`` after the tokens ``(B,)``, which the cache then holds as well."""
        x = F.embedding(tokens, self.gpt.tok_emb.weight) + self.gpt.pos_emb[0, cache.length]  # (B, C)
        for index, layer in enumerate(self.layers):
            x = layer(x, cache, index)
        cache.advance(1)
        return self.head(self.gpt.ln_f(x))


class _Layer:
    """A block of the transformer for vectors ``(B, C)``, one of each sequence."""

    def __init__(self, block: Block) -> None:
        self.ln1, self.ln2 = block.ln1, block.ln2
        attn = block.attn
        self.n_head = attn.n_head
        self.qkv = _Product([attn.query, attn.key, attn.value])
        self.proj = _Product([attn.proj])
        self.expand, self.contract = _Product([block.mlp[0]]), _Product([block.mlp[2]])

    def __call__(self, x: Tensor, cache: KeyValueCache, index: int) -> Tensor:
        q, k, v = (
            self.qkv(self.ln1(x)).view(len(x), 3, self.n_head, 1, x.shape[1] // self.n_head).unbind(1)
        )  # (B, heads, 1, D)
        k, v = cache.append(index, k, v)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).reshape(x.shape))
        return x + self.contract(F.gelu(self.expand(self.ln2(x))))


class _Product:
    """Linear layers side by side, ``(B, C) -> (B, out)``: ``x W^T + b`` in a batch of slices of ``W``."""

    def __init__(self, layers: list[nn.Module]) -> None:
        # A single weight stays a view of the layer's own.
        weight: Tensor = _join([layer.weight for layer in layers])  # type: ignore[misc]
        self.out, width = weight.shape
        self.weight = weight.reshape(math.gcd(self.out, 8), -1, width)
        biases = [weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
        bias: Tensor = _join(biases)  # type: ignore[arg-type]
        self.bias = bias.view(len(self.weight), -1, 1)

    def __call__(self, x: Tensor) -> Tensor:
        slices, rows = len(self.weight), len(x)
        if 1 < rows <= 4:  # else the other way round is faster
            product = torch.baddbmm(self.bias, self.weight, x.T.expand(slices, -1, rows))  # (slices, out / slices, B)
            return product.view(self.out, rows).T.contiguous()
        product = torch.baddbmm(self.bias.mT, x.expand(slices, *x.shape), self.weight.mT)  # (slices, B, out / slices)
        return product.transpose(0, 1).reshape(rows, self.out)


def _is_plain(module: nn.Module) -> bool:
    changed = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) in _PLAIN and not changed


def _join(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
