"""Checks of the discriminator in a VQ-GAN loss: its layers, its start, and its sizes."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._compare import clone, differ, gap, state_difference
from ._loss_patchgan import PatchGAN, act_normalized
from ._loss_subject import LOSS, LossSubject
from ._processes import can_run_two, in_two_processes
from ._report import refused, require


def _is_patch_gan(subject: LossSubject) -> bool:
    return subject.traits.patch_gan is not None


def _can_build(subject: LossSubject) -> bool:
    return subject.traits.build_discriminator is not None


@LOSS.check(
    rule="the discriminator has the declared layers, and its logits and statistics are those of a slow one in float64",
    cause="a constructor's argument that does not arrive, another slope, stride or padding, a norm that is left out",
    applies=_is_patch_gan,
)
def check_discriminator_network(loss: LossSubject) -> None:
    """Guards the patch discriminator in both modes, at its first forward and later.

    Fails it::

        NLayerDiscriminator(disc_in_channels, disc_ndf, disc_num_layers)  # without use_actnorm=use_actnorm
    """
    declared = loss.traits.patch_gan
    if declared is not None:
        _compare_network(loss.adapter.network(loss.fresh()), declared, loss.traits.image_shape[1:])


def _compare_network(network: nn.Module, declared: PatchGAN, size: tuple[int, ...]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    expected = declared.shapes()
    wrong = [name for name in {**expected, **shapes} if expected.get(name) != shapes.get(name)]
    told = ", ".join(f"{name} {shapes.get(name, 'missing')}, not {expected.get(name, 'there')}" for name in wrong[:3])
    require(not wrong, f"{len(wrong)} of its tensors are not as declared: {told}")
    network = clone(network).double()
    for training in (False, True, True, False):
        images = torch.rand(3, declared.channels, *size, dtype=torch.float64) * 2 - 1
        state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        wanted, after = declared(state, images, training=training)
        logits = network.train(training)(images).detach()
        mode = "training" if training else "evaluation"
        scale = float(wanted.abs().max())
        text = differ(logits, wanted, rtol=1e-6, atol=1e-6 * scale)
        require(not text, f"logits in {mode}: {text}")
        text = state_difference(dict(network.state_dict()), after, rtol=1e-6, atol=1e-9)
        require(not text, f"state after a forward in {mode}: {text}")


@LOSS.check(
    rule="weights start from N(0, 0.02), scales of batch normalization from N(1, 0.02), shifts from 0",
    cause="an initialization that is left out or overwritten, or that reaches another kind of layer",
    applies=_can_build,
)
def check_discriminator_initialization(loss: LossSubject) -> None:
    """Guards the start of the discriminator.

    Fails it::

        nn.init.normal_(norm.weight, 0.0, 0.02)  # a scale of about 0: hardly anything passes
    """
    build: Any = loss.traits.build_discriminator
    for actnorm in (False, True):
        network = build(3, 32, 3, use_actnorm=actnorm)
        named = dict(network.named_parameters())
        scales = [p for name, p in named.items() if name.endswith("weight") and p.ndim == 1]
        weights = [p for p in named.values() if p.ndim == 4 and p.shape[2] > 1]
        for weight in weights:
            _require_normal(weight, 0.0, f"weights {tuple(weight.shape)}")
        if scales:
            _require_normal(torch.cat(scales), 1.0, "scales of batch normalization")
        for name, module in network.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                require(not bool(module.bias.any()), f"{name} starts with a shift")
            if hasattr(module, "loc"):
                plain = not bool(module.loc.any()) and bool((module.scale == 1).all()) and not bool(module.initialized)
                require(plain, f"{name} does not start from loc 0, scale 1 and initialized 0")


def _require_normal(sample: Tensor, mean: float, name: str, std: float = 0.02) -> None:
    """Within five standard errors of a normal distribution's mean, standard deviation and share of outliers."""
    values, count = sample.detach().double().flatten(), sample.numel()
    found = (float(values.mean()), float(values.std()))
    close = abs(found[0] - mean) < 5 * std / count**0.5 and abs(found[1] / std - 1) < 5 / (2 * count) ** 0.5
    require(close, f"{name}: mean {found[0]:.4g} and standard deviation {found[1]:.4g}, not {mean:g} and {std:g}")
    share = float(((values - found[0]).abs() > 2 * found[1]).double().mean())
    error = 5 * (0.0455 * 0.9545 / count) ** 0.5
    require(abs(share - 0.0455) < error, f"{name}: {100 * share:.3g} % beyond two standard deviations, not 4.55 %")


@LOSS.check(
    rule="the discriminator of n layers gives H / 2**n - 2 logits a side, each of 9 * 2**n - 2 pixels a side",
    cause="a stride too many, another padding, or widths that double without an end",
    applies=_can_build,
)
def check_discriminator_sizes(loss: LossSubject) -> None:
    """Guards number and field of view of the logits, for one to five layers, and the smallest image.

    Fails it::

        stride = 2  # in every layer: the patches are twice as large as those of the paper
    """
    build: Any = loss.traits.build_discriminator
    for declared in (
        PatchGAN(3, 4, 1),
        PatchGAN(1, 3, 2, actnorm=True),
        PatchGAN(4, 2, 3),
        PatchGAN(3, 1, 4, actnorm=True),
        PatchGAN(3, 1, 5),
    ):
        make = (declared.channels, declared.ndf, declared.n_layers)
        network = build(*make, use_actnorm=declared.actnorm)
        least, told = declared.smallest, f"{declared.n_layers} layers"
        _compare_network(network, declared, (least, least + 2**declared.n_layers))
        for size in ((least, least), (least + 2**declared.n_layers + 1, 2 * least - 1)):
            shape = tuple(network.eval()(torch.zeros(2, declared.channels, *size)).shape)
            wanted = (2, 1, *declared.logits_shape(*size))
            require(shape == wanted, f"{told}: logits {shape} of images {size}, not {wanted}")
        if declared.n_layers <= 3:
            field = _field_of_view(network, declared)
            require(field == [declared.field] * 2, f"{told}: a logit sees {field}, not {declared.field} a side")
    whole = build()
    shapes = {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    require(shapes == PatchGAN().shapes(), f"the default is not that of {PatchGAN()}")


def _field_of_view(network: nn.Module, declared: PatchGAN) -> list[int]:
    """How far the gradient of one logit in the middle reaches."""
    side = 2 * declared.field
    images = torch.rand(1, declared.channels, side, side, dtype=torch.float64, requires_grad=True)
    logits = clone(network).double().eval()(images)[0, 0]
    (grad,) = torch.autograd.grad(logits[logits.shape[0] // 2, logits.shape[1] // 2], images)
    reached = grad.abs().sum(dim=(0, 1)).nonzero()
    found: list[int] = (reached.max(dim=0).values - reached.min(dim=0).values + 1).tolist()
    return found


@LOSS.check(
    rule="the discriminator refuses images of other channels, integer images, and images too small for a logit",
    cause="a check that is left out: the error then comes from deep inside, or not at all",
    applies=lambda subject: _can_build(subject) and subject.traits.strict,
)
def check_discriminator_refuses(loss: LossSubject) -> None:
    """Guards the errors of the discriminator.

    Fails it::

        return self.main(images)
    """
    build: Any = loss.traits.build_discriminator
    for n_layers in (1, 2, 3):
        network, least = build(3, 2, n_layers), 3 * 2**n_layers
        require(network.min_input_size == least, f"min_input_size is {network.min_input_size}, not {least}")
        for size in ((least - 1, least + 9), (least + 9, least - 1)):
            require(refused(partial(network, torch.zeros(1, 3, *size)), ValueError), f"{size} is taken")
    wrong: dict[str, Tensor] = {
        "images of another number of channels": torch.zeros(1, 4, 32, 32),
        "a single image": torch.zeros(3, 32, 32),
    }
    for name, images in wrong.items():
        require(refused(partial(network, images), ValueError), f"{name} is no ValueError")
    integers = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    require(refused(partial(network, integers), TypeError), "8-bit images are no TypeError")
    for place in range(3):
        sizes = [0 if place == i else 2 for i in range(3)]
        require(refused(partial(build, *sizes), ValueError), f"sizes {sizes} are taken")


def _act_norms(subject: LossSubject) -> Iterator[nn.Module]:
    for module in subject.adapter.network(subject.fresh()).modules():
        if all(hasattr(module, name) for name in ("loc", "scale", "initialized")):
            yield module


@LOSS.check(
    rule="ActNorm standardizes its first training batch and is a plain scale and shift from then on",
    cause="a mean with the wrong sign, a variance for a standard deviation, or a start that happens again",
    applies=lambda subject: next(_act_norms(subject), None) is not None,
)
def check_actnorm(loss: LossSubject) -> None:
    """Guards ActNorm: its start, what must not start it, and what comes after.

    Fails it::

        self.scale.copy_(1 / (x.var(dim=(0, 2, 3), keepdim=True) + 1e-6))
    """
    source: Any = next(_act_norms(loss))
    with torch.no_grad():
        source.loc.zero_(), source.scale.fill_(1.0), source.initialized.zero_()
    channels = source.loc.numel()
    usual = 3 * torch.randn(4, channels, 3, 5) + torch.arange(1.0, channels + 1).view(-1, 1, 1)
    norm = clone(source).eval()
    require(not gap(norm(usual), usual), "in evaluation, before its start, it changes values")
    norm.train()
    for x in (usual, 2 * usual - 7.0):  # the second batch is scaled as the first one was
        state = {name: tensor.detach().clone() for name, tensor in norm.state_dict().items()}
        wanted = act_normalized(state, "", x, training=True)
        text = differ(norm(x), wanted, rtol=1e-4, atol=1e-4)
        require(not text, f"{'first' if x is usual else 'second'} batch in training: {text}")
        text = state_difference(dict(norm.state_dict()), state, rtol=1e-4, atol=1e-4)
        require(not text, f"{'first' if x is usual else 'second'} batch in training: {text}")
    if loss.traits.strict:
        _check_start_of(source, usual)
        sum(norm(x).square().mean() for x in (usual, -usual)).backward()
        require(bool(norm.scale.grad.any() and norm.loc.grad.any()), "no gradient through two forwards")


def _check_start_of(source: nn.Module, usual: Tensor) -> None:
    """What this package promises of the start: a batch that has no statistics does not count."""
    for name, x in {
        "one value per channel": usual[:1, :, :1, :1],
        "a NaN": torch.where(torch.arange(usual.numel()).view_as(usual) == 3, torch.nan, usual),
        "an infinity": torch.where(torch.arange(usual.numel()).view_as(usual) == 3, torch.inf, usual),
    }.items():
        norm: Any = clone(source).train()
        norm(x)
        require(not bool(norm.initialized), f"a batch with {name} starts it")
    for dtype in (torch.float16, torch.bfloat16):
        norm, x = clone(source).train(), (200 * usual).to(dtype)  # squares leave float16's range
        found = norm(x)
        require(found.dtype == dtype, f"{found.dtype} from {dtype}")
        wanted = clone(source).train()(x.float())
        text = differ(found, wanted, rtol=1e-2, atol=1e-2)
        require(not text, f"first batch in {dtype}: {text}")
    norm = clone(source).train()
    flat = usual.movedim(1, -1).flatten(0, -2)
    text = differ(norm(flat), clone(source).train()(flat[:, :, None, None])[:, :, 0, 0], rtol=1e-5, atol=1e-5)
    require(not text, f"vectors (B, C), compared with images of one pixel: {text}")


@LOSS.check(
    rule="ActNorm starts from the batch of all processes: alike in all of them, as one process with all samples does",
    cause="statistics of each process's own batch, after which the copies are different networks",
    applies=lambda subject: subject.traits.strict and can_run_two() and next(_act_norms(subject), None) is not None,
)
def check_actnorm_two_processes(loss: LossSubject) -> None:
    """Guards the start of a discriminator that trains on several devices.

    Fails it::

        self.loc.copy_(-x.mean(dim=(0, 2, 3), keepdim=True))  # of this process's batch
    """
    source: Any = next(_act_norms(loss))
    batch = 3 * torch.randn(5, source.loc.numel(), 3, 4) + torch.arange(5.0).view(5, 1, 1, 1)

    def start(rank: int) -> dict[str, Tensor]:
        norm = clone(source).train()
        norm(batch[:2] if rank == 0 else batch[2:])
        return {name: tensor.detach().clone() for name, tensor in norm.state_dict().items()}

    whole = clone(source).train()
    whole(batch)
    for rank, state in enumerate(in_two_processes(start)):
        text = state_difference(state, dict(whole.state_dict()), rtol=1e-4, atol=1e-4)
        require(not text, f"process {rank} of two, compared with one process: {text}")
