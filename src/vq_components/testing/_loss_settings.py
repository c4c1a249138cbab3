"""Checks of a VQ-GAN loss: its constructor's arguments, what it refuses, and what it leaves uncalled."""

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._compare import differ
from ._loss_patchgan import PatchGAN
from ._loss_subject import LOSS, LossSubject
from ._report import fail, refused, require

# The original's arguments, in its order, with its defaults.
_ORIGINAL = {
    "disc_start": inspect.Parameter.empty, "codebook_weight": 1.0, "pixelloss_weight": 1.0, "disc_num_layers": 3,
    "disc_in_channels": 3, "disc_factor": 1.0, "disc_weight": 1.0, "perceptual_weight": 1.0, "use_actnorm": False,
    "disc_conditional": False, "disc_ndf": 64, "disc_loss": "hinge",
}  # fmt: skip
# Each setting: the trait that it is, its default, and another value.
_SETTINGS: dict[str, tuple[str, Any, Any]] = {
    "pixelloss_weight": ("pixel", 1.0, 0.31),
    "perceptual_weight": ("perceptual", 1.0, 0.32),
    "disc_weight": ("adversarial", 1.0, 0.33),
    "disc_factor": ("factor", 1.0, 0.34),
    "codebook_weight": ("codebook", 1.0, 0.35),
    "disc_loss": ("disc_loss", "hinge", "vanilla"),
}
_OURS: dict[str, tuple[str, Any, Any]] = {
    "delta": ("delta", 1e-6, 1e-3),
    "gen_start": ("gen_start", 7, 9),
    "gen_ramp": ("gen_ramp", 0, 5),
}


def _can_build(subject: LossSubject) -> bool:
    return subject.traits.build is not None and subject.adapter.traits is not None


def _building(subject: LossSubject) -> Any:
    """The constructor, with a small discriminator where it makes one."""
    build: Any = subject.traits.build
    return partial(build, disc_ndf=2, disc_num_layers=1) if _as_original(subject) else build


def _as_original(subject: LossSubject) -> bool:
    build = subject.traits.build
    return build is not None and "disc_num_layers" in inspect.signature(build).parameters


@LOSS.check(
    rule="every setting arrives, alone and together with others, and has the documented default",
    cause="an argument that is not handed on, or two that are handed on as each other",
    applies=_can_build,
)
def check_loss_settings(loss: LossSubject) -> None:
    """Guards the constructor.

    Fails it::

        super().__init__(..., disc_weight=disc_factor, disc_factor=disc_weight)
    """
    build = _building(loss)
    read: Any = loss.adapter.traits
    known = {**_SETTINGS, **(_OURS if loss.traits.strict else {})}
    everything = {name: other for name, (_, _, other) in known.items()}
    for given in ({}, everything, *({name: other} for name, other in everything.items())):
        found = read(build(disc_start=7, **given))
        require(found.disc_start == 7, f"disc_start=7 arrives as {found.disc_start}")
        for name, (trait, default, _) in known.items():
            wanted = given.get(name, default)
            require(getattr(found, trait) == wanted, f"{name} is {getattr(found, trait)}, not {wanted}, with {given}")


@LOSS.check(
    rule="the original's constructor has its arguments in its order, and those of the discriminator reach it",
    cause="use_actnorm or disc_ndf that is taken and not handed on",
    applies=_as_original,
)
def check_original_constructor(loss: LossSubject) -> None:
    """Guards configurations that were written for the original.

    Fails it::

        NLayerDiscriminator(disc_in_channels, n_layers=disc_num_layers, use_actnorm=use_actnorm)  # no disc_ndf
    """
    build: Any = loss.traits.build
    given = inspect.signature(build).parameters
    names = list(given)[: len(_ORIGINAL)]
    require(names == list(_ORIGINAL), f"its arguments are {', '.join(names)}")
    for name, default in _ORIGINAL.items():
        require(given[name].default == default, f"{name} is {given[name].default} unless told, not {default}")
    alone: tuple[tuple[dict[str, Any], PatchGAN], ...] = (
        ({}, PatchGAN()),
        ({"disc_num_layers": 2}, PatchGAN(n_layers=2)),
        ({"disc_in_channels": 5}, PatchGAN(5)),
        ({"disc_ndf": 16}, PatchGAN(ndf=16)),
        ({"use_actnorm": True}, PatchGAN(actnorm=True)),
    )
    for settings, declared in alone:
        network = loss.adapter.network(build(disc_start=0, **settings))
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        require(shapes == declared.shapes(), f"with {settings or 'its defaults'} its discriminator is not {declared}")
    if loss.traits.strict:
        _check_parts(build, loss)


def _check_parts(build: Any, loss: LossSubject) -> None:
    """Networks that are handed in are taken, and a condition belongs to a conditional loss."""
    own = nn.Conv2d(3, 1, 4)
    require(loss.adapter.network(build(0, discriminator=own)) is own, "discriminator= is not taken")
    distance = nn.Identity()
    for weight in (1.0, 0.0):
        module = build(0, perceptual=distance, perceptual_weight=weight)
        require(module.perceptual is distance, f"perceptual= is not taken with perceptual_weight={weight:g}")
    without = build(0, perceptual=None, perceptual_weight=0.0)
    require(without.perceptual is None, "with perceptual_weight=0 there is a perceptual module")
    scene = loss.scene()._replace(cond=None)
    cond = torch.zeros(len(scene.images), 2, *scene.images.shape[2:])
    for conditional, other in ((False, scene._replace(cond=cond)), (True, scene)):
        module = build(5, disc_conditional=conditional, disc_in_channels=5 if conditional else 3, disc_ndf=4)
        for player in (loss.generator, loss.discriminator):
            call = partial(player, module, other, 0)  # in the first step, not in that in which it is needed
            require(refused(call, ValueError), f"disc_conditional={conditional}: the other call is taken")


@LOSS.check(
    rule="settings that cannot be right are refused",
    cause="a comparison that NaN passes, or an unknown name that is found in the first step only",
    applies=lambda subject: _can_build(subject) and subject.traits.strict,
)
def check_loss_settings_refused(loss: LossSubject) -> None:
    """Guards configurations against typing errors.

    Fails it::

        if weight < 0: raise ValueError(...)  # NaN is not below 0
    """
    build = _building(loss)
    wrong: list[dict[str, Any]] = [{"disc_loss": "wgan"}, {"gen_start": 6}, {"gen_ramp": -1}, {"perceptual": None}]
    for name in ("pixelloss_weight", "perceptual_weight", "disc_weight", "disc_factor", "codebook_weight", "delta"):
        wrong += [{name: -0.1}, {name: torch.nan}]
    taken = inspect.signature(build).parameters
    for settings in wrong:
        if settings.keys() <= taken.keys() and not (_as_original(loss) and "perceptual" in settings):
            require(refused(partial(build, disc_start=7, **settings), ValueError), f"{settings} is taken")
    build(disc_start=7, gen_start=7, **dict.fromkeys(("disc_weight", "disc_factor", "codebook_weight"), 0.0))


@LOSS.check(
    rule="a call that cannot be right is refused, with the error of its kind; None will do for a layer not needed",
    cause="broadcasting, or an error that comes from the middle of a network",
    applies=lambda subject: subject.traits.strict,
)
def check_loss_call_refuses(loss: LossSubject) -> None:
    """Guards steps, conditions, layers and distances.

    Fails it::

        perceptual = self.perceptual(images, reconstructions).mean()  # also of a map (B, 1, H, W)
    """
    module: Any = loss.used()
    scene: Any = loss.scene()  # some of its fields are replaced by what they must not be
    x, step = scene.images, loss.full
    players: tuple[Any, ...] = (loss.generator, loss.discriminator)
    for player in players:
        for name, other in {
            "images that are a list": scene._replace(images=list(x)),
            "reconstructions that are a tuple": scene._replace(reconstructions=(scene.reconstructions,)),
            "integer reconstructions": scene._replace(reconstructions=x.to(torch.int64)),
        }.items():
            require(refused(partial(player, module, other, step), TypeError), f"{name}: no TypeError")
        for at in (0.5, float(step)):
            require(refused(partial(player, module, scene, at), TypeError), f"step {at}: no TypeError")
    for name, field in (("quantizer_loss", 0.5), ("last_layer", None)):
        call = partial(loss.generator, module, scene._replace(**{name: field}), step)
        require(refused(call, TypeError), f"{name}={field}: no TypeError")
    if scene.cond is not None:
        for cond in (scene.cond[:1], scene.cond[..., 1:]):
            for player in players:
                call = partial(player, module, scene._replace(cond=cond), step)
                require(refused(call, ValueError), f"cond {tuple(cond.shape)}: no ValueError")
    before = scene._replace(last_layer=None)
    loss.generator(module, before, loss.traits.gen_start - 1)
    with torch.no_grad():
        loss.generator(module, before, step)
    _check_distance_shapes(loss)


def _check_distance_shapes(loss: LossSubject) -> None:
    """A distance is one number for the batch or for each image, and nothing else."""
    module, scene = loss.used(), loss.scene()
    if not loss.traits.perceptual or not isinstance(getattr(module, "perceptual", None), nn.Module):
        return
    count, step = len(scene.images), loss.traits.gen_start - 1
    values: list[Tensor] = []
    taken: tuple[tuple[int, ...], ...] = ((), (count,), (count, 1, 1, 1))
    others: tuple[tuple[int, ...], ...] = ((count, 1), (1, count), (count, 1, 2, 2), (count + 1,))
    for shape in taken:
        module.perceptual = _Distance(shape)
        values.append(loss.generator(module, scene, step)[0].detach())
        text = differ(values[-1], values[0], rtol=1e-5, atol=1e-6)
        require(not text, f"a distance of shape {shape}, next to one number: {text}")
    for shape in others:
        module.perceptual = _Distance(shape)
        require(refused(partial(loss.generator, module, scene, step), ValueError), f"distance {shape}: no ValueError")


class _Distance(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        return (images - reconstructions).square().mean().expand(self.shape)


class _Trap(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *_: Tensor) -> Tensor:
        return fail(f"the {self.name} is called")  # type: ignore[func-returns-value, return-value]


@LOSS.check(
    rule="a network that has no weight or has not started is not called, and its terms are 0",
    cause="a term that is computed first and multiplied by 0 afterwards",
    applies=lambda subject: subject.traits.strict and subject.adapter.log is not None,
)
def check_loss_leaves_uncalled(loss: LossSubject) -> None:
    """Guards the time of a step, and settings without a network.

    Fails it::

        loss = loss + 0.0 * self.perceptual(images, reconstructions).mean()
    """
    step = loss.full
    module, scene = loss.used(), loss.scene()
    if hasattr(module, "perceptual_weight"):
        module.perceptual, module.perceptual_weight = _Trap("perceptual module"), 0.0
        _, terms = loss.generator(module, scene, step)
        require(float(terms["perceptual"]) == 0.0, f"without its weight it is {float(terms['perceptual']):.3g}")
    module = loss.used()
    module.discriminator = _Trap("discriminator")
    loss.generator(module, scene, loss.traits.gen_start - 1)
    loss.discriminator(module, scene, loss.traits.disc_start - 1)
    module.disc_factor = 0.0
    _, terms = loss.generator(module, scene, step)
    value, others = loss.discriminator(module, scene, step)
    numbers = [float(terms[name]) for name in ("generator", "adaptive_weight", "logits_fake")]
    numbers += [float(value.detach()), *(float(term) for term in others.values())]
    require(not any(numbers), f"with disc_factor=0: {numbers}")
    require(value.requires_grad, "with disc_factor=0 the discriminator's loss cannot be backpropagated")
