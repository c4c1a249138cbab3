"""Checks of the functions that a VQ-GAN loss is made of: the adversarial pair, and the adaptive weight's limits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._compare import backward, differ
from ._loss_subject import LOSS, LossSubject
from ._report import refused, require

Pair = tuple[Tensor, Tensor]


def _softplus(x: Tensor) -> Tensor:
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def _discriminator_forms(kind: str, real: Tensor, fake: Tensor) -> tuple[Tensor, Pair]:
    """The loss in float64, and its derivatives by the logits, both written out."""
    if kind == "hinge":
        value = ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()) / 2
        slopes = -(real < 1).double(), (fake > -1).double()
    else:
        value = (_softplus(-real).mean() + _softplus(fake).mean()) / 2
        slopes = -1 / (1 + torch.exp(real)), 1 / (1 + torch.exp(-fake))
    return value, (slopes[0] / (2 * real.numel()), slopes[1] / (2 * fake.numel()))


def _generator_forms(kind: str, fake: Tensor) -> tuple[Tensor, Tensor]:
    if kind == "non_saturating":
        return _softplus(-fake).mean(), -1 / (1 + torch.exp(fake)) / fake.numel()
    return -fake.mean(), torch.full_like(fake, -1 / fake.numel())


@LOSS.check(
    rule="the adversarial losses and their gradients are the closed forms, at any logits, in any precision",
    cause="log(1 + exp(x)) or log(sigmoid(x)) written out, a mean in half precision, or a sum of both batches",
    applies=lambda subject: subject.traits.adversarial_losses is not None and subject.traits.disc_loss is not None,
)
def check_adversarial_functions(loss: LossSubject) -> None:
    """Guards both functions of the pair, at logits up to 1000, and for more logits than half precision can sum.

    Fails it::

        loss = (1 + (-logits_real).exp()).log().mean()  # infinite from -89 on
    """
    kind, functions = loss.traits.disc_loss, loss.traits.adversarial_losses
    if kind is None or functions is None:
        return
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for name, (real, fake) in _logits().items():
            real, fake = (each.to(dtype).requires_grad_() for each in (real, fake))
            where = f"{name}, {dtype}"
            exact = real.detach().double(), fake.detach().double()
            value = functions[0](logits_real=real, logits_fake=fake)
            wanted, slopes = _discriminator_forms(kind, *exact)
            _require_close(loss, value, wanted, f"discriminator, {where}", dtype)
            for part, logits, slope in zip(("real", "fake"), (real, fake), slopes, strict=True):
                _require_slope(value, logits, slope, f"discriminator at {part} logits, {where}", dtype)
            value = functions[1](logits_fake=fake)
            generator, slope = _generator_forms(kind, exact[1])
            _require_close(loss, value, generator, f"generator, {where}", dtype)
            _require_slope(value, fake, slope, f"generator, {where}", dtype)
    if loss.traits.strict:
        empty = torch.zeros(0, 1, 2, 2)
        for value in (functions[0](logits_real=empty, logits_fake=empty), functions[1](logits_fake=empty)):
            require(float(value) == 0.0, f"without a logit {float(value)}")


def _logits() -> dict[str, Pair]:
    many = 1000 * torch.rand(2, 1, 30, 30)
    return {
        "usual logits": (torch.randn(3, 1, 4, 5), torch.randn(2, 1, 7, 3)),
        "logits of a sure discriminator": (many, -many[:1]),
        "logits of a discriminator that is wrong": (-many, many[:1]),
        "logits about the margins": (1 + torch.tensor([-0.5, -0.25, 0.25]), -1 + torch.tensor([0.5, -0.25, 0.25, 0.5])),
        "one logit for each image": (torch.randn(5), torch.randn(5)),
    }


def _require_close(subject: LossSubject, value: Tensor, wanted: Tensor, where: str, dtype: torch.dtype) -> None:
    require(value.shape == (), f"{where}: a loss of shape {tuple(value.shape)}")
    full = torch.promote_types(dtype, torch.float32)
    if subject.traits.strict:
        require(value.dtype == full, f"{where}: {value.dtype} instead of {full}")
    rtol = _RTOL[full if subject.traits.strict else dtype]
    text = differ(value.double(), wanted, rtol=rtol, atol=rtol)
    require(not text, f"{where}: {float(value.detach()):.7g} instead of {float(wanted):.7g}")


def _require_slope(value: Tensor, logits: Tensor, wanted: Tensor, where: str, dtype: torch.dtype) -> None:
    (grad,) = torch.autograd.grad(value, logits, retain_graph=True)
    least = 1e-7 if dtype == torch.float16 else 0.0  # the smallest numbers of float16
    text = differ(grad.double(), wanted, rtol=_RTOL[dtype], atol=_RTOL[dtype] * float(wanted.abs().max()) + least)
    require(not text, f"{where}: gradient: {text}")


# torch rounds softplus(x) to x from 20 on: its gradient lacks 2e-9 there.
_RTOL = {torch.float64: 1e-8, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def _has_weight(subject: LossSubject) -> bool:
    return subject.traits.adaptive_weight is not None and subject.traits.strict


@LOSS.check(
    rule="the adaptive weight is 0 where a gradient is not finite or both are 0, at most max_weight, and detached",
    cause="a limit for one of the gradients only, a default other than the paper's, or a graph that is freed",
    applies=_has_weight,
)
def check_adaptive_weight_limits(loss: LossSubject) -> None:
    """Guards the function at its limits: gradients that vanish or overflow, its defaults, and what it leaves behind.

    Fails it::

        torch.where(reconstruction_norm.isfinite(), ratio, 0.0)  # an infinite adversarial gradient gives 0 / 0
    """
    weight_of: Any = loss.traits.adaptive_weight
    layer = torch.randn(7, requires_grad=True)
    ones = torch.ones(7)
    broken = torch.tensor([1.0, torch.nan, 1.0, 1.0, 1.0, 1.0, 1.0])
    infinite = torch.where(broken.isnan(), torch.inf, 1.0)
    for name, first, second, wanted in (
        ("both gradients 0", 0 * ones, 0 * ones, 0.0),
        ("the adversarial gradient 0", ones, 0 * ones, 1e4),
        ("the reconstruction's gradient 0", 0 * ones, ones, 0.0),
        *((f"{kind} in the reconstruction's", bad, ones, 0.0) for kind, bad in _BAD.items()),
        *((f"{kind} in the adversarial", ones, bad, 0.0) for kind, bad in _BAD.items()),
        *((f"{kind} in both", bad, bad, 0.0) for kind, bad in _BAD.items()),
        ("one NaN in the reconstruction's", broken, ones, 0.0),
        ("one infinity in the adversarial", ones, infinite, 0.0),
        ("a ratio of a million", 1e6 * ones, ones, 1e4),
    ):
        for delta in (0.0, 1e-6):
            weight = weight_of((first * layer).sum(), (second * layer).sum(), layer, delta=delta)
            require(float(weight) == wanted, f"{name}, delta={delta:g}: {float(weight)} instead of {wanted}")
    start = torch.zeros(7, requires_grad=True)  # the losses are 0, and the gradient of a root there is infinite
    for first, second in ((start.sqrt().sum(), start.sum()), (start.sum(), start.sqrt().sum())):
        weight = weight_of(first, second, start)
        require(float(weight) == 0.0, f"an infinite gradient of a loss that is 0: {float(weight)}")
    pair = ((1e-3 * layer).sum(), (1e-6 * layer).sum(), layer)
    norm = 7**0.5
    for settings, wanted in (
        ({}, 1e-3 * norm / (1e-6 * norm + 1e-6)),
        ({"delta": 0.0, "max_weight": 3.5}, 3.5),
        ({"delta": 0.0, "max_weight": 1e9}, 1e3),
        ({"delta": 1e-3}, 1e-3 * norm / (1e-6 * norm + 1e-3)),
    ):
        found = float(weight_of(*pair, **settings))
        require(
            abs(found / wanted - 1) < 1e-4, f"with {settings or 'its defaults'} {found:.6g} instead of {wanted:.6g}"
        )
    large = float(weight_of((1e6 * layer).sum(), (1e-3 * layer).sum(), layer, delta=0.0, max_weight=1e12))
    require(abs(large / 1e9 - 1) < 1e-4, f"with max_weight=1e12 {large:.6g} instead of 1e9")
    _check_what_is_left(weight_of)
    _check_half(weight_of)


_BAD = {"NaN": torch.full((7,), torch.nan), "infinity": torch.full((7,), torch.inf)}


def _check_what_is_left(weight_of: Callable[..., Tensor]) -> None:
    """No gradient is stored, both graphs are kept, and what has no gradient at the layer is refused."""
    layer, other = torch.randn(7, requires_grad=True), torch.randn(7, requires_grad=True)
    first, second = (layer.exp() * 2).sum(), layer.square().sum().reshape(1, 1)
    weight = weight_of(first, second, layer)
    require(weight.shape == () and not weight.requires_grad, f"it has shape {tuple(weight.shape)}, or a graph")
    require(layer.grad is None, "it leaves a gradient at the layer")
    backward(first + second)  # raises if a graph was freed
    first, second = (2 * layer).sum(), layer.sum()
    for name, call in {
        "a loss of two numbers": partial(weight_of, layer[:2], second, layer),
        "an adversarial loss of two numbers": partial(weight_of, first, layer[:2], layer),
        "a loss without a graph": partial(weight_of, first.detach(), second, layer),
        "an adversarial loss without a graph": partial(weight_of, first, second.detach(), layer),
        "a loss of another layer": partial(weight_of, other.sum(), second, layer),
        "an adversarial loss of another layer": partial(weight_of, first, other.sum(), layer),
        "a frozen layer": partial(weight_of, first, second, layer.detach()),
    }.items():
        require(refused(call, ValueError), f"{name} is taken")
    for layer_given in (None, "weight", 3.0):
        require(refused(partial(weight_of, first, second, layer_given), TypeError), f"{layer_given!r} is taken")


def _check_half(weight_of: Callable[..., Tensor]) -> None:
    """Where the graph is half precision: gradients that would underflow or overflow in it."""
    for dtype in (torch.float16, torch.bfloat16):
        layer = torch.ones(61, dtype=dtype, requires_grad=True)
        for name, size in (("small", 2.0**-30), ("usual", 1.0), ("large", 2.0**14)):  # no digit of 3 * size is lost
            losses = [(layer.float() * each).sum() for each in (3 * size, size)]
            weight = weight_of(*losses, layer, delta=0.0)
            require(weight.dtype == torch.float32, f"{weight.dtype} for {dtype}")
            near = abs(float(weight) / 3 - 1) < 1e-3
            require(near, f"{name} gradients at a layer in {dtype}: {float(weight):.6g} instead of 3")
