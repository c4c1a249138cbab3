"""Checks of LPIPS on each of its networks, next to a plain one in float64."""

import importlib.util
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._compare import differ
from ._loss_subject import LOSS, LossSubject
from ._report import refused, require

# Name in torchvision; the class of layers whose outputs are compared; which of these layers, counted from 1; the
# smallest image. SqueezeNet's first ReLU, before all of its Fire modules, is compared as well.
_NETS = {
    "vgg": ("vgg16", "ReLU", (2, 4, 7, 10, 13), 16),
    "alex": ("alexnet", "ReLU", (1, 2, 3, 4, 5), 31),
    "squeeze": ("squeezenet1_1", "Fire", (2, 4, 5, 6, 7, 8), 17),
}
_VARIABLE = "VQ_COMPONENTS_VGG16"


def _can_build(subject: LossSubject) -> bool:
    return subject.traits.build_perceptual is not None


class _Plain:
    """The published distance, with features from torchvision's own layers and heads from the lpips package."""

    def __init__(self, net: str, state: dict[str, Tensor]) -> None:
        from torchvision.models import get_model

        name, self.kind, self.numbers, _ = _NETS[net]
        with torch.device("meta"):
            model = get_model(name, weights=None)
        self.layers: Any = model.features.to_empty(device="cpu").double().eval().requires_grad_(False)
        self.layers.load_state_dict(
            {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
        )
        package: Any = importlib.util.find_spec("lpips")
        path = Path(package.origin).parent / "weights" / "v0.1" / f"{net}.pth"
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        self.heads = [loaded[f"lin{i}.model.1.weight"].double() for i in range(len(loaded))]

    def features(self, images: Tensor) -> list[Tensor]:
        shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(3, 1, 1)
        scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(3, 1, 1)
        x, count, found = (images - shift) / scale, 0, []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            count += type(layer).__name__ == self.kind
            first = self.kind == "Fire" and index == 1  # squeezenet's one ReLU outside of its modules
            if first or (type(layer).__name__ == self.kind and count in self.numbers):
                found.append(x)
            if len(found) == len(self.heads):
                break
        return found

    def __call__(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        total = torch.zeros(len(images), dtype=torch.float64)
        pairs = zip(self.features(images), self.features(reconstructions), self.heads, strict=True)
        for x, y, head in pairs:
            x, y = (each / (each.square().sum(dim=1, keepdim=True).sqrt() + 1e-10) for each in (x, y))
            total = total + (head * (x - y).square()).sum(dim=1).mean(dim=(1, 2))
        return total


def random_checkpoint(net: str, *, gain: float = 1.0) -> dict[str, Tensor]:
    """Random weights of the network under torchvision's names, which keep the size of features."""
    from torchvision.models import get_model

    with torch.device("meta"):
        model = get_model(_NETS[net][0], weights=None)
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("features."):
            std = (2 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1
            state[name] = gain * std * torch.randn(value.shape)
    return state


def _built(subject: LossSubject, net: str, state: dict[str, Tensor]) -> Any:
    build: Any = subject.traits.build_perceptual
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trunk.pth"
        torch.save(state, path)
        return build(net, weights=path)


def _images(size: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(2, 3, size, size + 3) * 2 - 1
    return x, (x + 0.3 * torch.randn_like(x)).clamp(-1, 1)


@LOSS.check(
    rule="LPIPS on each network has the values and the gradients of a plain one in float64",
    cause="features of another layer, a constant of the scaling, a branch without a gradient, heads in another order",
    applies=_can_build,
)
def check_lpips_networks(loss: LossSubject) -> None:
    """Guards the distance on VGG, AlexNet and SqueezeNet, and the gradient on both of its sides.

    Fails it::

        taps = (3, 8, 15, 22, 28)  # before the last ReLU instead of after it
    """
    build: Any = loss.traits.build_perceptual
    cases = [(net, random_checkpoint(net)) for net in ("squeeze", "alex")]
    cases.append(("squeeze", _faint(cases[0][1])))
    saved = os.environ.get(_VARIABLE)
    cases.append(("vgg", _saved(saved) if saved else random_checkpoint("vgg")))
    for net, state in cases:
        distance = build() if net == "vgg" and saved else _built(loss, net, state)
        pair = _images(_NETS[net][3])
        sides = [each.clone().requires_grad_() for each in pair]
        exact = [each.double().requires_grad_() for each in pair]
        found, wanted = distance(*sides), _Plain(net, state)(*exact)
        text = differ(found.double(), wanted, rtol=1e-4, atol=1e-7)
        require(not text, f"{net}: {text}")
        grads, others = torch.autograd.grad(found.sum(), sides), torch.autograd.grad(wanted.sum(), exact)
        for name, grad, other in zip(("images", "reconstructions"), grads, others, strict=True):
            text = differ(grad.double(), other, rtol=1e-2, atol=1e-3 * float(other.abs().max()))
            require(not text, f"{net}: gradient at the {name}: {text}")
        if loss.traits.strict:
            small = partial(distance, *(each[:, :, 1:] for each in pair))
            require(refused(small, ValueError), f"{net}: images that are too small: no ValueError")


def _faint(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that make all features a millionth as large: unit vectors stay as they are."""
    weights = {name: value if value.ndim > 1 else torch.zeros_like(value) for name, value in state.items()}
    first = next(iter(weights))
    return {**weights, first: 1e-6 * weights[first]}


def _saved(path: str) -> dict[str, Tensor]:
    if not path.endswith(".safetensors"):
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    from safetensors.torch import load_file

    return load_file(path)


@LOSS.check(
    rule="the network of LPIPS stays frozen, in evaluation mode and in float32, and is hidden from its owner",
    cause="a submodule that train(), half() or an optimizer reaches, or autocast inside",
    applies=lambda subject: _can_build(subject) and subject.traits.strict,
)
def check_lpips_is_hidden(loss: LossSubject) -> None:
    """Guards the perceptual network against its owner: modes, precisions, parameters; and its gradient at zero.

    Fails it::

        self.network = network  # in the owner's state_dict, parameters() and train()
    """
    distance = _built(loss, "squeeze", random_checkpoint("squeeze"))
    owner = nn.Sequential(distance)
    x, y = _images(24)
    expected = distance(x, y)
    require(not list(owner.parameters()) and not owner.state_dict(), "it has parameters, or a state")
    owner.train().requires_grad_(True)
    require(not distance(x, y).requires_grad, "images without a graph give a distance with one")
    for dtype in (torch.float16, torch.bfloat16):
        half = (x.to(dtype), y.to(dtype).requires_grad_())
        wanted = distance(*(each.detach().float() for each in half))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = distance(*half)
        text = differ(found, wanted, rtol=1e-5, atol=1e-7)
        require(found.dtype == torch.float32 and not text, f"images in {dtype}, with autocast: {found.dtype}, {text}")
        (grad,) = torch.autograd.grad(found.sum(), half[1])
        require(grad.dtype == dtype and bool(grad.any()), f"its gradient is {grad.dtype}, or 0")
        owner.to(dtype)
        text = differ(distance(x, y), expected, rtol=1e-5, atol=1e-7)
        require(not text, f"after its owner went to {dtype}: {text}")
    found = distance(x.double(), y.double())
    text = differ(found, expected, rtol=1e-5, atol=1e-7)
    require(found.dtype == torch.float32 and not text, f"images in float64: {found.dtype}, {text}")
    found = owner.double()[0](x.double(), y.double())
    text = differ(found, expected, rtol=1e-4, atol=1e-7)
    require(found.dtype == torch.float64 and not text, f"after double(): {found.dtype}, {text}")
    rounded = {name: value.half() for name, value in random_checkpoint("squeeze").items()}
    wanted = _built(loss, "squeeze", {name: value.float() for name, value in rounded.items()})(x, y)
    text = differ(_built(loss, "squeeze", rounded)(x, y), wanted, rtol=1e-5, atol=1e-7)
    require(not text, f"a checkpoint in half precision: {text}")
    nothing = _built(loss, "squeeze", random_checkpoint("squeeze", gain=0.0))
    y = y.detach().requires_grad_()
    found = nothing(x, y)
    (grad,) = torch.autograd.grad(found.sum(), y)
    finite = bool(found.isfinite().all() and grad.isfinite().all())
    require(finite, "where all features are 0, the distance or its gradient is not finite")


@LOSS.check(
    rule="LPIPS refuses what it cannot compare: other shapes, gray or small images, 8-bit images, wrong weights",
    cause="a check that is left out: gray images broadcast, and images up to 255 give a number as well",
    applies=lambda subject: _can_build(subject) and subject.traits.strict,
)
def check_lpips_refuses(loss: LossSubject) -> None:
    """Guards against distances of something else.

    Fails it::

        distance = lpips(images, reconstructions)  # of images up to 255
    """
    build: Any = loss.traits.build_perceptual
    states = {net: random_checkpoint(net) for net in ("squeeze", "alex")}
    for net, state in states.items():
        distance, least = _built(loss, net, state), _NETS[net][3]
        x = torch.rand(2, 3, least, least)
        distance(x, x)
        distance(1.4 * x, 9 * x)  # a decoder may leave the range
        require(distance(x[:0], x[:0]).shape == (0,), f"{net}: an empty batch gives another shape")
        wrong = {
            "an image that is too small": (x[:, :, 1:], x[:, :, 1:]),
            "another one": (x[..., 1:], x[..., 1:]),
            "two batches": (x, x[:1]),
            "gray images": (x[:, :1], x[:, :1]),
            "gray reconstructions": (x, x[:, :1]),
            "single images": (x[0], x[0]),
            "images up to 255": (255 * x, 255 * x),
            "images down to -2": (-2 * torch.ones_like(x), x),
        }
        for name, pair in wrong.items():
            require(refused(partial(distance, *pair), ValueError), f"{net}: {name}: no ValueError")
        for pair in ((x.to(torch.uint8), x), (x, x.to(torch.uint8))):
            require(refused(partial(distance, *pair), TypeError), f"{net}: 8-bit images: no TypeError")
    require(refused(partial(build, "resnet"), ValueError), "a network without heads: no ValueError")
    for net in _NETS:  # whatever the environment knows
        missing = partial(build, net, weights=f"/nowhere/{net}.pth")
        require(refused(missing, FileNotFoundError), f"{net}: a file that does not exist: no FileNotFoundError")
    state = states["squeeze"]
    first = next(iter(state))
    for name, other in {
        "of another network": states["alex"],
        "without one of them": {key: value for key, value in state.items() if key != first},
        "with one more": {**state, "features.99.weight": torch.zeros(1)},
        "with one of another shape": {**state, first: state[first][:1]},
    }.items():
        require(refused(partial(_built, loss, "squeeze", other), ValueError), f"weights {name}: no ValueError")
