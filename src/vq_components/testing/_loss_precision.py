"""Checks of a VQ-GAN loss in other precisions: float64, half precision, and a decoder in half precision."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._compare import differ
from ._loss_adapters import Scene
from ._loss_players import generator_grads
from ._loss_subject import LOSS, LossSubject
from ._report import require


def _cast(scene: Scene, dtype: torch.dtype) -> Scene:
    """The same scene with leaves and images in another precision."""
    features, layer = (leaf.detach().to(dtype).requires_grad_() for leaf in (scene.features, scene.last_layer))
    return Scene(
        scene.images.to(dtype),
        features,
        layer,
        F.conv2d(features, layer, padding=1),
        scene.quantizer_loss.detach().to(dtype).requires_grad_(),
        None if scene.cond is None else scene.cond.to(dtype),
    )


@LOSS.check(
    rule="in float64 everything is computed in float64: the loss and gradients are the declared ones to ten digits",
    cause="float() where only half precision is to be converted, or a constant that is a little off",
    applies=lambda subject: subject.declares_all and subject.traits.strict,
)
def check_loss_double(loss: LossSubject) -> None:
    """Guards numerical tests of gradients, and constants that float32 hides.

    Fails it::

        pixel = (images - reconstructions).abs().float().mean()
    """
    module, scene = loss.used().double(), _cast(loss.scene(), torch.float64)
    for step in (loss.traits.gen_start - 1, loss.full):
        expected = loss.expected_generator(module, scene, step)["loss"]
        value, grads = generator_grads(loss, module, scene, step)
        require(value.dtype == torch.float64, f"step {step}: the generator's loss is {value.dtype}")
        kinds = {term.dtype for term in loss.generator(module, scene, step)[1].values()}
        require(kinds == {torch.float32}, f"step {step}: the terms are {kinds}")
        wanted = torch.autograd.grad(expected, scene.leaves, retain_graph=True)
        _require_close(value, expected, 1e-9, f"step {step}: the generator's loss")
        for name, grad, other in zip(("features", "last layer", "quantizer loss"), grads, wanted, strict=True):
            _require_close(grad, other, 1e-8, f"step {step}: gradient at the {name}")
    expected = loss.expected_discriminator(loss.adapter.network(module), scene)["discriminator"]
    value, _ = loss.discriminator(module, scene, loss.full)
    require(value.dtype == torch.float64, f"the discriminator's loss is {value.dtype}")
    _require_close(value, (loss.traits.factor or 0.0) * expected, 1e-9, "the discriminator's loss")


def _require_close(actual: Tensor, expected: Tensor, rtol: float, where: str) -> None:
    scale = float(expected.detach().abs().max())
    text = differ(actual.reshape(expected.shape), expected, rtol=rtol, atol=rtol * scale)
    require(not text, f"{where}: {text}")


@LOSS.check(
    rule="a loss and images in half precision give float32 numbers near those of float32, and gradients at all leaves",
    cause="a sum in half precision, or a network that is handed another precision than its own",
    applies=lambda subject: subject.traits.strict,
)
def check_loss_half(loss: LossSubject) -> None:
    """Guards trainings in bfloat16 without autocast.

    Fails it::

        logits = self.discriminator(reconstructions.float())  # whose weights are bfloat16
    """
    scene = loss.scene()
    module: Any = loss.used()
    half, other = loss.used().to(torch.bfloat16), _cast(scene, torch.bfloat16)
    # The same numbers, rounded: the float32 loss sees what the other one does.
    rounded = _cast(other, torch.float32)
    for step in (loss.traits.gen_start - 1, loss.full):
        wanted, exact = generator_grads(loss, module, rounded, step)
        value, grads = generator_grads(loss, half, other, step)
        _require_float32(value, wanted, f"step {step}: the generator's loss")
        for name, grad, leaf, full in zip(("features", "last layer"), grads, other.leaves, exact, strict=False):
            require(grad.dtype == leaf.dtype, f"step {step}: the gradient at the {name} is {grad.dtype}")
            cosine = float(F.cosine_similarity(grad.double().flatten(), full.double().flatten(), dim=0))
            ratio = float(grad.double().norm() / full.double().norm())
            require(cosine > 0.9, f"step {step}: cosine {cosine:.3g} of the gradient at the {name} with float32's")
            require(abs(ratio - 1) < 0.2, f"step {step}: the gradient at the {name} is {ratio:.3g} times float32's")
    wanted, _ = loss.discriminator(module, rounded, loss.full)
    value, _ = loss.discriminator(half, other, loss.full)
    _require_float32(value.detach(), wanted.detach(), "the discriminator's loss")

    if hasattr(module, "pixelloss_weight"):
        _check_scaled(loss, scene)


def _check_scaled(loss: LossSubject, scene: Scene) -> None:
    """A loss that is scaled up for float16 has gradients of its size, however weak the loss is."""
    found = []
    for dtype in (torch.float16, torch.float32):
        module = loss.used().to(dtype)
        module.pixelloss_weight, module.perceptual_weight = 1e-4, 0.0
        made = scene.images.detach().mul(0.5).to(dtype).requires_grad_()
        other = _cast(scene, dtype)._replace(reconstructions=made)
        value, _ = loss.generator(module, other, loss.traits.gen_start - 1)
        found.append(torch.autograd.grad(2.0**14 * value, made)[0])
    text = differ(found[0].float(), found[1], rtol=1e-2, atol=1e-2 * float(found[1].abs().max()))
    require(not text, f"a weak loss times 2**14: gradient at float16 reconstructions: {text}")


def _require_float32(value: Tensor, wanted: Tensor, where: str) -> None:
    require(value.dtype == torch.float32, f"{where} is {value.dtype}")
    # bfloat16 has three digits, and a network multiplies their errors.
    near = abs(float(value) - float(wanted)) <= 0.2 * max(abs(float(wanted)), 1.0)
    require(near, f"{where} is {float(value):.5g}, in float32 {float(wanted):.5g}")


@LOSS.check(
    rule="where the decoder's graph is float16, the adaptive weight is that of float32",
    cause="the gradient of a mean over many pixels, which is below float16's range, or its norm, which is above it",
    applies=lambda subject: subject.traits.strict and bool(subject.traits.pixel),
)
def check_adaptive_weight_of_half_decoder(loss: LossSubject) -> None:
    """Guards mixed precision in float16 at the last layer, for weak and strong gradients.

    Fails it::

        torch.autograd.grad(reconstruction, last_layer)  # 0 in float16, if a pixel's share is below 3e-8
    """
    name = "pixelloss_weight"
    for gain, weight, one_signed in (
        (3.0, 1e-4, False),
        (3.0, 1.0, False),
        (1e-3, 1.0, False),
        (3.0, 1e4, False),
        (3.0, 1.0, True),
    ):
        module, scene = loss.used(gain=gain), loss.scene()
        if not hasattr(module, name):
            continue
        setattr(module, name, weight)
        if one_signed:  # as after an activation: what the layer's gradient adds up does not cancel
            scene = scene._replace(features=4 * scene.features.detach().abs())
        found = []
        for dtype in (torch.float32, torch.float16):
            leaves = [leaf.detach().half().to(dtype).requires_grad_() for leaf in (scene.features, scene.last_layer)]
            made = F.conv2d(leaves[0], leaves[1], padding=1).float()
            other = scene._replace(features=leaves[0], last_layer=leaves[1], reconstructions=made)
            _, terms = loss.generator(module, other, loss.full)
            found.append(float(terms["adaptive_weight"]))
        near = abs(found[1] / max(found[0], 1e-30) - 1) < 0.05
        where = f"{name} {weight:g}, gain {gain:g}{', features of one sign' if one_signed else ''}"
        require(near, f"{where}: {found[1]:.4g} in float16, {found[0]:.4g} in float32")
