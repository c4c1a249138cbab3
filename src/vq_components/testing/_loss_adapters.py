"""How to call a VQ-GAN loss, and what it declares."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from ._loss_patchgan import PatchGAN

Answer = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class LossTraits:
    """What is true of a VQ-GAN loss by design. What is None is not known, and checks that need it are left out.

    Args:
        image_shape: channels, height and width of images that it takes.
        cond_channels: number of channels of a condition that it takes as well; 0 for none.
        disc_start: first step in which the discriminator learns.
        gen_start: first step in which the generator follows it.
        gen_ramp: number of steps in which the adversarial term grows to its full weight; 0 for none.
        disc_loss: the pair of adversarial losses. The discriminator's is ``"hinge"``, half of ``mean(relu(1 - real)) +
            mean(relu(1 + fake))``, or with softplus of ``-real`` and ``fake`` in place of both; the generator's is
            ``-mean(fake)`` for ``"hinge"`` and ``"vanilla"``, ``mean(softplus(-fake))`` for ``"non_saturating"``. None
            for any other, also for one with a penalty.
        weights: names of attributes that must have an effect on the loss when they change.
        pixel: weight of the mean absolute difference.
        perceptual: weight of the perceptual distance.
        adversarial: weight of the adversarial term.
        factor: weight of everything adversarial.
        codebook: weight of the quantizer's loss.
        adaptive: whether the adversarial term has an adaptive weight, ``|grad rec| / (|grad adv| + delta)``.
        delta: of this weight.
        max_weight: its upper bound.
        adaptive_weight: a function of ``(reconstruction_loss, generator_loss, last_layer)`` to check as well.
        adversarial_losses: the pair of ``disc_loss`` as functions to check as well: the discriminator's of
            ``logits_real=`` and ``logits_fake=``, and the generator's of ``logits_fake=``.
        stochastic: whether it draws, or its discriminator looks at the batch as a whole: random augmentation, dropout,
            a gradient penalty at random places, deviations over the batch. Its numbers are not compared then.
        patch_gan: what its discriminator is, if that has the original's parameter names.
        build_discriminator: a constructor ``(input_nc, ndf, n_layers, use_actnorm=)`` of it, to check as well.
        build_perceptual: a constructor ``(net, weights=)`` of LPIPS, to check as well.
        build: a constructor of the loss that takes ``disc_start=`` and other settings by name, to check as well.
        strict: also what this package promises beyond the correct gradients, such as terms and errors.
        rtol: relative tolerance.
    """

    image_shape: tuple[int, int, int] = (3, 32, 32)
    cond_channels: int = 0
    disc_start: int = 0
    gen_start: int = 0
    gen_ramp: int = 0
    disc_loss: Literal["hinge", "vanilla", "non_saturating"] | None = None
    weights: tuple[str, ...] = ()
    pixel: float | None = None
    perceptual: float | None = None
    adversarial: float | None = None
    factor: float | None = None
    codebook: float | None = None
    adaptive: bool = True
    delta: float | None = None
    max_weight: float = 1e4
    adaptive_weight: Callable[..., Tensor] | None = None
    adversarial_losses: tuple[Callable[..., Tensor], Callable[..., Tensor]] | None = None
    stochastic: bool = False
    patch_gan: PatchGAN | None = None
    build_discriminator: Callable[..., nn.Module] | None = None
    build_perceptual: Callable[..., nn.Module] | None = None
    build: Callable[..., nn.Module] | None = None
    strict: bool = False
    rtol: float = 2e-3


class Scene(NamedTuple):
    """What a training step has at hand: reconstructions with a graph, of a last layer and of features."""

    images: Tensor
    features: Tensor
    last_layer: Tensor
    reconstructions: Tensor
    quantizer_loss: Tensor
    cond: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        """What the generator trains here."""
        return [self.features, self.last_layer, self.quantizer_loss]


@dataclass(frozen=True, kw_only=True)
class LossAdapter:
    """Functions that say how a loss is used.

    Args:
        generator: ``(module, scene, step) -> (loss, terms)``.
        discriminator: ``(module, scene, step) -> (loss, terms)``.
        network: ``(module) -> the discriminator's module``.
        perceptual: ``(module) -> the perceptual module or None``, which is called with images and reconstructions.
        traits: ``(module) -> LossTraits``, used where none are given.
        log: ``(module, scene, step, optimizer_idx, split) -> (loss, log)``, the original's call with its log.
    """

    generator: Callable[[Any, Scene, int], Answer]
    discriminator: Callable[[Any, Scene, int], Answer]
    network: Callable[[Any], nn.Module] = lambda module: module.discriminator
    perceptual: Callable[[Any], nn.Module | None] = lambda module: getattr(module, "perceptual", None)
    traits: Callable[[Any], LossTraits] | None = None
    log: Callable[[Any, Scene, int, Any, str], Answer] | None = None


def _own_generator(module: Any, scene: Scene, step: int) -> Answer:
    loss, terms = module.generator_loss(
        scene.images,
        scene.reconstructions,
        quantizer_loss=scene.quantizer_loss,
        last_layer=scene.last_layer,
        step=step,
        **({} if scene.cond is None else {"cond": scene.cond}),
    )
    return loss, terms


def _own_discriminator(module: Any, scene: Scene, step: int) -> Answer:
    cond = {} if scene.cond is None else {"cond": scene.cond}
    loss, terms = module.discriminator_loss(scene.images, scene.reconstructions, step=step, **cond)
    return loss, terms


def _own_traits(module: Any) -> LossTraits:
    parameters = [parameter for parameter in module.discriminator.parameters() if parameter.ndim > 1]
    channels = parameters[0].shape[1] if parameters else 3
    weights = ("pixelloss_weight", "disc_weight", "disc_factor", "codebook_weight")
    return LossTraits(
        cond_channels=max(channels - 3, 0) if getattr(module, "disc_conditional", False) else 0,
        disc_start=module.disc_start,
        gen_start=module.gen_start,
        gen_ramp=module.gen_ramp,
        disc_loss=module.disc_loss,
        weights=weights if module.perceptual is None else (*weights, "perceptual_weight"),
        pixel=module.pixelloss_weight,
        perceptual=module.perceptual_weight,
        adversarial=module.disc_weight,
        factor=module.disc_factor,
        codebook=module.codebook_weight,
        delta=module.delta,
        strict=True,
    )


def _original_call(module: Any, scene: Scene, step: int, player: Any, split: str) -> Answer:
    loss, log = module(
        scene.quantizer_loss,
        scene.images,
        scene.reconstructions,
        player,
        step,
        last_layer=scene.last_layer,
        cond=scene.cond,
        split=split,
    )
    return loss, log


own_loss = LossAdapter(
    generator=_own_generator, discriminator=_own_discriminator, traits=_own_traits, log=_original_call
)
"""For losses with ``generator_loss`` and ``discriminator_loss``."""


def _taming_call(module: Any, scene: Scene, step: int, player: int) -> Answer:
    loss, log = _original_call(module, scene, step, player, "train")
    return loss, {name.removeprefix("train/"): value for name, value in log.items()}


def _taming_traits(module: Any) -> LossTraits:
    if not hasattr(module, "discriminator_iter_start"):
        return LossTraits(disc_start=module.disc_start, gen_start=module.disc_start)
    start = module.discriminator_iter_start
    return LossTraits(
        disc_start=start,
        gen_start=start,
        disc_loss="hinge" if module.disc_loss.__name__.startswith("hinge") else "vanilla",
        weights=("pixel_weight", "perceptual_weight", "discriminator_weight", "disc_factor", "codebook_weight"),
        pixel=module.pixel_weight,
        perceptual=module.perceptual_weight,
        adversarial=module.discriminator_weight,
        factor=module.disc_factor,
        codebook=module.codebook_weight,
        delta=1e-4,
    )


taming_loss = LossAdapter(
    generator=lambda module, scene, step: _taming_call(module, scene, step, 0),
    discriminator=lambda module, scene, step: _taming_call(module, scene, step, 1),
    perceptual=lambda module: getattr(module, "perceptual_loss", None),
    traits=_taming_traits,
    log=_original_call,
)
"""For the original's call form, ``loss(codebook_loss, inputs, reconstructions, optimizer_idx, global_step, ...)``."""
