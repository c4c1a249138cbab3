"""Comparing tensors, modules and their states, in words."""

import contextlib
import copy
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ._report import require


def kind_of(value: Any) -> str:
    """What something is: dtype and shape of a tensor, the class of anything else."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def as_loss_tensor(loss: Any) -> Tensor:
    """A loss as a tensor, which may have been a plain number, or None for 0."""
    return loss if isinstance(loss, Tensor) else torch.tensor(float(loss or 0))


def gap(actual: Tensor, expected: Tensor) -> str:
    """How far two tensors are apart, in words; empty if they are bit-equal (NaN equals NaN)."""
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    if actual.numel() == 0:
        return ""
    a, b = actual.detach(), expected.detach()
    different = ~((a == b) | ((a != a) & (b != b)))
    if not bool(different.any()):
        return ""
    share = f"{int(different.sum())} of {different.numel()} values differ"
    if not (a.is_floating_point() or b.is_floating_point()):
        return share
    far = (a.double() - b.double()).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    return f"{share}, by up to {float(far.max()):.3g} (largest value {float(b.double().abs().max()):.3g})"


def differ(actual: Tensor, expected: Tensor, *, rtol: float, atol: float) -> str:
    """:func:`gap`, unless it is within the tolerance."""
    text = gap(actual, expected)
    if not text or actual.shape != expected.shape:
        return text
    same = torch.allclose(actual.detach().double(), expected.detach().double(), rtol=rtol, atol=atol, equal_nan=True)
    return "" if same else text


def state_of(module: Any) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, saved or not."""
    if not isinstance(module, nn.Module):
        return {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach().clone() for name, tensor in named}


def floating_state(module: Any) -> dict[str, Tensor]:
    """The floating-point part of it: what is learned and averaged, without counters and flags."""
    return {name: tensor for name, tensor in state_of(module).items() if tensor.is_floating_point()}


def state_without(module: nn.Module, names: set[str]) -> dict[str, Tensor]:
    """The same, but for these names."""
    return {name: tensor for name, tensor in state_of(module).items() if name not in names}


def counted_by_norms(module: nn.Module) -> set[str]:
    """Names of the state that normalizations change in each training forward: averages, and power iterations."""
    norms = [name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
    counted = {f"{norm}.{name}" for norm in norms for name in ("running_mean", "running_var", "num_batches_tracked")}
    return counted | power_iterations(module)


def power_iterations(module: nn.Module) -> set[str]:
    """Names of the vectors of spectral normalizations, old and new."""
    names, weights = [name for name, _ in module.named_buffers()], dict(module.named_parameters())
    old = {name for name in names if name.endswith(("_u", "_v")) and f"{name[:-2]}_orig" in weights}
    return old | {name for name in names if ".parametrizations." in f".{name}" and name.endswith(("._u", "._v"))}


def state_difference(
    actual: dict[str, Tensor], expected: dict[str, Tensor], *, rtol: float = 0.0, atol: float = 0.0
) -> str:
    """The names in which two states differ, and by how much; empty if they do not."""
    if actual.keys() != expected.keys():
        return f"tensors {sorted(actual.keys() ^ expected.keys())} exist in one of two states only"
    texts = {name: differ(actual[name], expected[name], rtol=rtol, atol=atol) for name in actual}
    for name in actual:
        if actual[name].dtype != expected[name].dtype:
            texts[name] = f"{actual[name].dtype} instead of {expected[name].dtype}"
    return "; ".join(f"{name}: {text}" for name, text in texts.items() if text)


def modes_of(module: Any) -> dict[str, bool]:
    """Whether each part is in training mode, by its name."""
    return {name: part.training for name, part in module.named_modules()}


def require_modes(module: Any, modes: dict[str, bool], when: str) -> None:
    """Ends a check unless every part is in the mode that it was in."""
    changed = [name or "the module itself" for name, training in modes_of(module).items() if modes[name] != training]
    require(not changed, f"{when} modes are not as they were: {', '.join(changed[:3])}")


def clone(module: Any) -> Any:
    """A deep copy without gradients."""
    twin = copy.deepcopy(module)
    if isinstance(twin, nn.Module):
        twin.zero_grad(set_to_none=True)
    return twin


@contextlib.contextmanager
def drawn(seed: int) -> Iterator[None]:
    """A known random state, and afterwards the one of before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 1.5 ms for devices that are not used
        yield


def backward(loss: Tensor) -> None:
    """Calls ``backward()`` of one number of any shape."""
    torch.autograd.backward(loss.reshape(()))


def importable(kind: type) -> bool:
    """Whether a pickle can name this class: not one of a notebook's cell, or of a function."""
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


def use_of(counts: Tensor) -> dict[str, Tensor]:
    """Usage and perplexity ``(Q,)`` in float64 of each stage, by its counts ``(Q, K)``."""
    shares = counts.double() / counts.sum(dim=1, keepdim=True)
    return {"usage": (counts > 0).double().mean(dim=1), "perplexity": torch.special.entr(shares).sum(dim=1).exp()}
