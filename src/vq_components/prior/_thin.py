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
        self.norm = _Norm(gpt.ln_f)
        self.head = _Product(gpt.head)

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
        return self.head(self.norm(x))


class _Layer:
    """A block of the transformer for vectors ``(B, C)``, one of each sequence."""

    def __init__(self, block: Block) -> None:
        attn = block.attn
        self.n_head = attn.n_head
        self.norm1, self.norm2 = _Norm(block.ln1), _Norm(block.ln2)
        self.query, self.key, self.value = _Product(attn.query), _Product(attn.key), _Product(attn.value)
        self.proj = _Product(attn.proj)
        self.expand, self.contract = _Product(cast(nn.Linear, block.mlp[0])), _Product(cast(nn.Linear, block.mlp[2]))

    def __call__(self, x: Tensor, cache: KeyValueCache, index: int) -> Tensor:
        rows, width = x.shape
        heads = (rows, self.n_head, 1, width // self.n_head)
        h = self.norm1(x)
        k, v = cache.append(index, self.key(h).view(heads), self.value(h).view(heads))
        h = F.scaled_dot_product_attention(self.query(h).view(heads), k, v)
        x = x + self.proj(h.view(rows, width))
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))


class _Norm:
    """A layer norm, without what a module's call costs."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.settings = (norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, *self.settings)


class _Product:
    """A linear layer, ``(B, C) -> (B, out)``: ``x W^T + b`` in a batch of slices of ``W``."""

    def __init__(self, layer: nn.Linear) -> None:
        self.out, width = layer.weight.shape
        self.slices = math.gcd(self.out, 16)
        self.weight = layer.weight.view(self.slices, -1, width).mT
        bias = layer.weight.new_zeros(self.out) if layer.bias is None else layer.bias
        self.bias = bias.view(self.slices, 1, -1)

    def __call__(self, x: Tensor) -> Tensor:
        rows, width = x.shape
        product = torch.baddbmm(self.bias, x.expand(self.slices, rows, width), self.weight)  # (slices, B, out / slices)
        if rows > 1:
            product = product.transpose(0, 1)
        return product.reshape(rows, self.out)


def _is_plain(module: nn.Module) -> bool:
    changed = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) in _PLAIN and not changed
