"""Checks of the perceptual distance in a VQ-GAN loss."""

import warnings
from typing import Any

import torch
from torch import nn

from ._compare import differ
from ._loss_subject import LOSS, LossSubject
from ._report import require


def _has_distance(subject: LossSubject) -> bool:
    return subject.adapter.perceptual(subject.fresh()) is not None


def _is_lpips(subject: LossSubject) -> bool:
    return type(subject.adapter.perceptual(subject.fresh())).__name__ == "LPIPSLoss"


@LOSS.check(
    rule="the perceptual distance of equal images is 0, of others above it, and its gradient at equal images is finite",
    cause="a norm without eps, dropout, or a noise layer",
    applies=_has_distance,
)
def check_perceptual_of_equal_images(loss: LossSubject) -> None:
    """Guards reconstructions that are perfect, in images that are noise, black or white.

    Fails it::

        unit = features / features.norm(dim=1, keepdim=True)  # 0 / 0 where features are zero
    """
    scene = loss.scene()
    flat = (torch.full_like(scene.images, value) for value in (-1.0, 1.0))
    for x in (scene.images, *flat):
        y = x.clone().requires_grad_()
        distance = loss.distance(loss.fresh(), x, y)
        largest = float(distance.detach().abs().max())
        require(largest < 1e-6, f"the distance of equal images is {largest:.3g}")
        (grad,) = torch.autograd.grad(distance.sum(), y)
        require(bool(grad.isfinite().all()), f"{int((~grad.isfinite()).sum())} values of its gradient are not finite")
    least = float(loss.distance(loss.fresh(), scene.images, scene.images.flip(0)).min())
    require(least > 0, f"the distance of different images is {least:.3g}")


@LOSS.check(
    rule="the perceptual distance of two images depends on nothing else: not on the mode, on chance, or on the batch",
    cause="a frozen network that its owner's train() wakes up: dropout, or batch normalization",
    applies=_has_distance,
)
def check_perceptual_is_a_function(loss: LossSubject) -> None:
    """Guards the perceptual network's mode in a training.

    Fails it::

        self.perceptual = LPIPS().eval()  # and loss.train() puts it back in training mode
    """
    scene = loss.scene()
    x, y = scene.images, scene.reconstructions.detach()
    expected = loss.distance(loss.fresh().eval(), x, y)
    for training, seed in ((True, 1), (True, 2), (False, 2)):
        found = loss.distance(loss.fresh().train(training), x, y, seed=seed)
        text = loss.differ(found, expected)
        require(not text, f"{'training' if training else 'evaluation'}, compared with evaluation: {text}")
    alone = torch.cat([loss.distance(loss.fresh().eval(), x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    text = loss.differ(alone.mean(), expected.mean())
    require(not text, f"mean distance, image by image: {text}")


@LOSS.check(
    rule="LPIPSLoss computes what the lpips package computes with the same network, and keeps computing it in float32",
    cause="images that are not scaled, features that are not normalized, heads in another order, weights in half",
    applies=_is_lpips,
)
def check_perceptual_values(loss: LossSubject) -> None:
    """Guards the distance that everybody reports.

    Fails it::

        distance = (x - y).square().mean()  # of features, without their unit length and the trained heads
    """
    import lpips

    module, scene = loss.fresh(), loss.scene()
    perceptual: Any = loss.adapter.perceptual(module)
    with warnings.catch_warnings():  # of torchvision, about how lpips calls it
        warnings.simplefilter("ignore")
        reference: Any = lpips.LPIPS(net=perceptual.net, pnet_rand=True, verbose=False).eval()
    own = perceptual._hidden[0].features
    for copy, part in zip(_convolutions(reference.net), _convolutions(own), strict=True):
        copy.load_state_dict(part.state_dict())
    x, y = scene.images, scene.reconstructions.detach().clamp(-1, 1)
    with torch.no_grad():
        found = loss.distance(module, x, y)
        text = loss.differ(found, reference(x, y).flatten())
        require(not text, f"compared with lpips: {text}")
        text = differ(loss.distance(module.bfloat16(), x, y), found, rtol=1e-5, atol=0.0)
        require(not text, f"after bfloat16(): {text}")


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [part for part in network.modules() if isinstance(part, nn.Conv2d)]
