"""A loss under test: how to call both of its players, a scene to call it on, and what it should answer."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._compare import clone, differ, drawn
from ._engine import Kind
from ._loss_adapters import Answer, LossAdapter, LossTraits, Scene, own_loss, taming_loss

_WEIGHTS = "parametrizations"  # what makes the weights of a layer is none itself


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
        self._source = loss
        self.name = name or type(loss).__name__
        self.adapter = adapter
        if traits is None and adapter.traits is not None:
            traits = adapter.traits(loss)
        if traits is None:
            raise TypeError(f"{type(loss).__name__} does not tell its traits. Pass traits=LossTraits(...).")
        self.traits = traits
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
                least = logits.abs().mean() / 2  # alike, they may be far from 0, where a softplus is flat
                weights[-1].mul_(2.0 / logits.std().clamp(min=1e-3).maximum(least))
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

    def generator(self, module: Any, scene: Scene, step: int, *, seed: int = 1) -> Answer:
        """The generator's pass, with a known random state: what is drawn does not hide what is computed."""
        with drawn(seed):
            return self.adapter.generator(module, scene, step)

    def discriminator(self, module: Any, scene: Scene, step: int, *, seed: int = 1) -> Answer:
        """The discriminator's pass, likewise."""
        with drawn(seed):
            return self.adapter.discriminator(module, scene, step)

    def distance(self, module: Any, x: Tensor, y: Tensor, *, seed: int = 1) -> Tensor:
        """The perceptual distance of each image, ``(B,)``, likewise: 0 where there is none; a mean stands for all."""
        perceptual = self.adapter.perceptual(module)
        if perceptual is None:
            return x.new_zeros(len(x))
        with drawn(seed):
            values: Tensor = perceptual(x, y)
        return values.reshape(len(x), -1).mean(dim=1) if values.numel() > 1 else values.reshape(1).expand(len(x))

    @property
    def full(self) -> int:
        """A step in which everything is on, with its full weight."""
        return max(self.traits.gen_start, self.traits.disc_start) + self.traits.gen_ramp + 3

    def before(self, start: int) -> int:
        """The step before a start; the first one of all for a loss that is on in it, which is asked nothing before."""
        return start - 1 if self.traits.strict else max(start - 1, 0)

    def unopposed(self, module: Any) -> tuple[Any, int]:
        """A copy, and a step in which its discriminator does not pull at the generator."""
        start = self.traits.gen_start
        return (clone(module), start - 1) if self.before(start) < start else (self.without_pull(module), self.full)

    def without_pull(self, module: Any) -> Any:
        """A copy whose logits have no gradient, so that everything else in the loss is as it was."""
        module, scene = clone(module), self.scene()
        network = self.adapter.network(module)
        for name in _heads_of(clone(network), self.with_condition(scene.images, scene)):
            network.get_submodule(name).register_forward_hook(lambda head, inputs, logits: _Stop.apply(logits))
        return module

    @property
    def undeclared(self) -> str:
        """What has to be declared beside the rest to compute the loss; nothing helps with one that draws."""
        t = self.traits
        names = ("disc_loss", "pixel", "perceptual", "adversarial", "factor", "codebook")
        parts = [f"{name}=" for name in names if getattr(t, name) is None]
        parts += ["delta= or adaptive=False"] if t.adaptive and t.delta is None else []
        return "" if t.stochastic else ", ".join(parts)

    @property
    def declares_all(self) -> bool:
        """Whether the loss can be computed from what is declared."""
        return not (self.traits.stochastic or self.undeclared)

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
        perceptual = self.distance(module, x, y).mean() if t.perceptual else pixel.new_zeros(())
        reconstruction = (t.pixel or 0.0) * pixel + (t.perceptual or 0.0) * perceptual
        total = reconstruction + (t.codebook or 0.0) * scene.quantizer_loss
        generator = weight = mean = pixel.new_zeros(())
        factor = self.factor_at(step)
        if factor > 0:
            logits = network(self.with_condition(y, scene))
            generator, mean = -logits.mean(), logits.mean()
            if t.disc_loss == "non_saturating":
                generator = F.softplus(-logits).mean()
            weight = self._adaptive_weight(reconstruction, generator, scene) if t.adaptive else pixel.new_ones(())
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

    def _adaptive_weight(self, reconstruction: Tensor, generator: Tensor, scene: Scene) -> Tensor:
        norms = [
            torch.autograd.grad(part, scene.last_layer, retain_graph=True)[0].double().norm()
            for part in (reconstruction, generator)
        ]
        weight: Tensor = norms[0] / (norms[1] + (self.traits.delta or 0.0))
        return weight.clamp(0.0, self.traits.max_weight).to(generator.dtype)

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


def _heads_of(network: nn.Module, inputs: Tensor) -> set[str]:
    """Names of layers from which the output comes without another one in between: those inside of a wrapper.

    The network is not to be used afterwards.
    """
    found: list[tuple[str, Tensor]] = []

    def cut(name: str, layer: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        found.append((name, output.detach().requires_grad_()))
        return found[-1][1].clone()  # for layers that work in place

    for name, part in network.named_modules():
        inside = {child for child, _ in part.named_children()} - {_WEIGHTS}
        if not inside and _WEIGHTS not in name.split("."):
            part.register_forward_hook(partial(cut, name))
    grads = torch.autograd.grad(network(inputs).sum(), [leaf for _, leaf in found], allow_unused=True)
    return {name for (name, _), grad in zip(found, grads, strict=True) if grad is not None}


class _Stop(torch.autograd.Function):
    """The same values, with a gradient of 0: the adaptive weight still finds a graph."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.zeros_like(grads[0])


def as_loss(loss: Any, **options: Any) -> LossSubject:
    """A subject as it is, or one made of a loss."""
    return loss if isinstance(loss, LossSubject) else LossSubject(loss, **options)


LOSS: Kind[LossSubject] = Kind("loss", as_loss)
