"""A loss under test: how to call both of its players, a scene to call it on, and what it should answer."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._compare import clone, differ
from ._engine import Kind

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
        disc_loss: the pair of adversarial losses.
        weights: names of attributes that must have an effect on the loss when they change.
        pixel: weight of the mean absolute difference.
        perceptual: weight of the perceptual distance.
        adversarial: weight of the adversarial term.
        factor: weight of everything adversarial.
        codebook: weight of the quantizer's loss.
        delta: of the adaptive weight ``|grad rec| / (|grad adv| + delta)``.
        max_weight: its upper bound.
        adaptive_weight: a function of ``(reconstruction_loss, generator_loss, last_layer)`` to check as well.
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
    delta: float | None = None
    max_weight: float = 1e4
    adaptive_weight: Callable[..., Tensor] | None = None
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
        perceptual: ``(module) -> the perceptual module or None``.
        traits: ``(module) -> LossTraits``, used where none are given.
    """

    generator: Callable[[Any, Scene, int], Answer]
    discriminator: Callable[[Any, Scene, int], Answer]
    network: Callable[[Any], nn.Module] = lambda module: module.discriminator
    perceptual: Callable[[Any], nn.Module | None] = lambda module: getattr(module, "perceptual", None)
    traits: Callable[[Any], LossTraits] | None = None


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


own_loss = LossAdapter(generator=_own_generator, discriminator=_own_discriminator, traits=_own_traits)
"""For losses with ``generator_loss`` and ``discriminator_loss``."""


def _taming_call(module: Any, scene: Scene, step: int, player: int) -> Answer:
    loss, log = module(
        scene.quantizer_loss,
        scene.images,
        scene.reconstructions,
        player,
        step,
        last_layer=scene.last_layer,
        cond=scene.cond,
        split="train",
    )
    return loss, {name.removeprefix("train/"): value for name, value in log.items()}


def _taming_traits(module: Any) -> LossTraits:
    start = module.discriminator_iter_start if hasattr(module, "discriminator_iter_start") else module.disc_start
    names = ("pixel_weight", "perceptual_weight", "discriminator_weight", "disc_factor", "codebook_weight")
    return LossTraits(disc_start=start, gen_start=start, weights=tuple(name for name in names if hasattr(module, name)))


taming_loss = LossAdapter(
    generator=lambda module, scene, step: _taming_call(module, scene, step, 0),
    discriminator=lambda module, scene, step: _taming_call(module, scene, step, 1),
    perceptual=lambda module: getattr(module, "perceptual_loss", None),
    traits=_taming_traits,
)
"""For the original's call form, ``loss(codebook_loss, inputs, reconstructions, optimizer_idx, global_step, ...)``."""


class LossSubject:
    """A VQ-GAN loss, how to call it, and what it declares.

    Args:
        loss: the module, which is copied for every check.
        name: what reports and test ids call it; its class's name unless told.
        adapter: how to call it; needed unless it has ``generator_loss`` and ``discriminator_loss``.
        traits: what it declares; read from its attributes unless told.
        expected_failures: names of checks that must fail, each with the reason.
    """

    def __init__(
        self,
        loss: nn.Module,
        *,
        name: str | None = None,
        adapter: LossAdapter | None = None,
        traits: LossTraits | None = None,
        expected_failures: Mapping[str, str] | None = None,
    ) -> None:
        if adapter is None:
            adapter = own_loss if hasattr(loss, "generator_loss") else taming_loss
        if traits is None and adapter.traits is None:
            raise TypeError(f"{type(loss).__name__} does not tell its traits. Pass traits=LossTraits(...).")
        self._source = loss
        self.name = name or type(loss).__name__
        self.adapter = adapter
        self.traits = traits if traits is not None or adapter.traits is None else adapter.traits(loss)
        self.expected_failures = dict(expected_failures or {})

    def fresh(self) -> Any:
        """A copy in training mode."""
        return clone(self._source).train()

    def used(self, *, gain: float = 3.0) -> Any:
        """A copy whose discriminator has logits of both signs, beyond 1; weights are multiplied by ``gain``."""
        module = self.fresh()
        with torch.no_grad():
            network = self.adapter.network(module)
            scene = self.scene()
            network(self.with_condition(scene.images, scene))
            weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
            for weight in weights:
                weight.mul_(gain)
            if gain >= 1:
                logits = network(self.with_condition(scene.images, scene))
                weights[-1].mul_(2.0 / logits.std().clamp(min=1e-3))
        return module

    def scene(self, kind: str = "usual") -> Scene:
        """A batch of images and reconstructions; ``kind`` says which values are special."""
        channels, height, width = self.traits.image_shape
        images = torch.rand(4, channels, height, width) * 2 - 1
        features = torch.randn(4, 5, height, width)
        last_layer = 0.2 * torch.randn(channels, 5, 3, 3)
        if kind in ("black", "saturated"):
            images = torch.full_like(images, -1.0 if kind == "black" else 1.0)
        if kind != "usual":
            last_layer = torch.zeros_like(last_layer)
        features, last_layer = features.requires_grad_(), last_layer.requires_grad_()
        reconstructions = F.conv2d(features, last_layer, padding=1)
        if kind != "usual":
            reconstructions = reconstructions + images
        cond = torch.randn(4, self.traits.cond_channels, height, width) if self.traits.cond_channels else None
        return Scene(images, features, last_layer, reconstructions, torch.tensor(0.37, requires_grad=True), cond)

    @staticmethod
    def with_condition(images: Tensor, scene: Scene) -> Tensor:
        """What the discriminator is given."""
        return images if scene.cond is None else torch.cat([images, scene.cond], dim=1)

    @property
    def full(self) -> int:
        """A step in which everything is on, with its full weight."""
        return max(self.traits.gen_start, self.traits.disc_start) + self.traits.gen_ramp + 3

    @property
    def declares_all(self) -> bool:
        """Whether the loss can be computed from what is declared."""
        t = self.traits
        return None not in (t.disc_loss, t.pixel, t.perceptual, t.adversarial, t.factor, t.codebook, t.delta)

    def factor_at(self, step: int) -> float:
        """``disc_factor * ramp`` of the generator."""
        t = self.traits
        if step < t.gen_start:
            return 0.0
        return (t.factor or 0.0) * (min(1.0, (step - t.gen_start + 1) / t.gen_ramp) if t.gen_ramp else 1.0)

    def expected_generator(self, module: Any, scene: Scene, step: int) -> dict[str, Tensor]:
        """The parts of the generator's loss and the loss itself, each with its graph, by plain autograd."""
        t = self.traits
        x, y = scene.images, scene.reconstructions
        pixel = (x - y).abs().mean()
        network = copy.deepcopy(self.adapter.network(module)).requires_grad_(False)
        perceptual = pixel.new_zeros(())
        distance = self.adapter.perceptual(module)
        if distance is not None and t.perceptual:
            perceptual = distance(x, y).mean()
        reconstruction = (t.pixel or 0.0) * pixel + (t.perceptual or 0.0) * perceptual
        total = reconstruction + (t.codebook or 0.0) * scene.quantizer_loss
        generator = weight = mean = pixel.new_zeros(())
        factor = self.factor_at(step)
        if factor > 0:
            logits = network(self.with_condition(y, scene))
            generator, mean = -logits.mean(), logits.mean()
            if t.disc_loss == "non_saturating":
                generator = F.softplus(-logits).mean()
            norms = [
                torch.autograd.grad(part, scene.last_layer, retain_graph=True)[0].double().norm()
                for part in (reconstruction, generator)
            ]
            weight = (norms[0] / (norms[1] + (t.delta or 0.0))).clamp(0.0, t.max_weight).float()
            total = total + factor * (t.adversarial or 0.0) * weight * generator
        return {
            "loss": total,
            "pixel": pixel,
            "perceptual": perceptual,
            "reconstruction": reconstruction,
            "generator": generator,
            "quantizer": scene.quantizer_loss,
            "adaptive_weight": weight,
            "logits_fake": mean,
        }

    def expected_discriminator(self, network: nn.Module, scene: Scene) -> dict[str, Tensor]:
        """The same for the discriminator, before ``disc_factor``, with the graph of ``network``."""
        real = network(self.with_condition(scene.images, scene))
        fake = network(self.with_condition(scene.reconstructions.detach(), scene))
        if self.traits.disc_loss == "hinge":
            loss = 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
        else:
            loss = 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
        return {"discriminator": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}

    def differ(self, actual: Tensor, expected: Tensor) -> str:
        """How far two values are apart, within the tolerance."""
        scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
        return differ(actual.float(), expected.float(), rtol=self.traits.rtol, atol=1e-6 + self.traits.rtol * scale)


def as_loss(loss: Any, **options: Any) -> LossSubject:
    """A subject as it is, or one made of a loss."""
    return loss if isinstance(loss, LossSubject) else LossSubject(loss, **options)


LOSS: Kind[LossSubject] = Kind("loss", as_loss)
