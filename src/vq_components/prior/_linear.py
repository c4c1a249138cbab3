"""Linear layers on a few vectors, which is all that cached sampling does."""

import math

import torch
from torch import Tensor, nn

# More vectors than this at once are no longer a matter of reading the weights.
_FEW = 16


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` for ``(B, T, C)``; on a CPU, sampling reads the weights about twice as fast as ``nn.Linear`` does.

    There, ``x W^T`` of a few rows is left to a single thread. The same product as a batch of slices of ``W``, which are
    views, is not.
    """
    if not (isinstance(layer, nn.Linear) and _is_thin(layer, x)):
        result: Tensor = layer(x)
        return result
    weight = layer.weight
    out, width = weight.shape
    slices = math.gcd(out, 8)
    rows = x.reshape(-1, width)
    # (slices, B T, out / slices)
    product = torch.bmm(rows.expand(slices, *rows.shape), weight.view(slices, -1, width).transpose(1, 2))
    product = product.transpose(0, 1).reshape(*x.shape[:-1], out)
    return product if layer.bias is None else product + layer.bias


def _is_thin(layer: nn.Linear, x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and type(layer) is nn.Linear  # not a subclass, which may do more
        and x[..., 0].numel() <= _FEW
        and x.dtype == layer.weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and layer.weight.is_contiguous()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
