"""Checks of a VQ-GAN loss: its values and gradients."""

from typing import Any

import torch
from torch import Tensor, nn

from ._compare import clone
from ._loss_players import generator_grads
from ._loss_subject import LOSS, LossSubject
from ._report import require


def _declares_all(subject: LossSubject) -> bool:
    return subject.declares_all


def _steps(subject: LossSubject) -> list[int]:
    start, ramp = subject.traits.gen_start, subject.traits.gen_ramp
    return [start - 1, start, *([start + ramp // 2] if ramp else []), subject.full]


@LOSS.check(
    rule="values and gradients are finite where reconstructions equal images, at black images and at saturated ones",
    cause="a square root or a norm without eps: its gradient at 0 is infinite, and infinite times 0 is NaN",
)
def check_finite(loss: LossSubject) -> None:
    """Guards the first steps of a training, flat images, and perfect reconstructions.

    Fails it::

        unit = features / features.norm(dim=1, keepdim=True)
    """
    for kind in ("usual", "equal", "black", "saturated"):
        for training in (True, False):
            module, scene = loss.used().train(training), loss.scene(kind)
            value, grads = generator_grads(loss, module, scene, loss.full)
            other, _ = loss.adapter.discriminator(module, scene, loss.full)
            require(bool(value.isfinite() and other.isfinite().all()), f"{kind}: losses {float(value)}, {other.tolist()}")
            bad = sum(int((~grad.isfinite()).sum()) for grad in grads)
            require(bad == 0, f"{kind}: {bad} values of the generator's gradients are not finite")


@LOSS.check(
    rule="eval() changes no value and no gradient, as long as autograd is on",
    cause="an adaptive weight that is 0 in evaluation, or a perceptual network with dropout",
)
def check_eval_equals_train(loss: LossSubject) -> None:
    """Guards validation losses: they are comparable to training ones. The discriminator's own mode is left out.

    Fails it::

        except RuntimeError:
            assert not self.training
            d_weight = torch.tensor(0.0)
    """
    module, scene = loss.used(), loss.scene()
    other = clone(module).eval()
    loss.adapter.network(other).train()
    value, grads = generator_grads(loss, module, scene, loss.full)
    again, others = generator_grads(loss, other, scene, loss.full)
    require(not loss.differ(again, value), f"the generator's loss is {float(value):.6g}, in eval {float(again):.6g}")
    for a, b in zip(others, grads, strict=True):
        require(not loss.differ(a, b), f"a gradient in eval: {loss.differ(a, b)}")
    first, _ = loss.adapter.discriminator(module, scene, loss.full)
    second, _ = loss.adapter.discriminator(other, scene, loss.full)
    numbers = f"the discriminator's loss is {float(first.detach()):.6g}, in eval {float(second.detach()):.6g}"
    require(not loss.differ(second.detach(), first.detach()), numbers)


@LOSS.check(
    rule="a pass that is repeated gives the same numbers",
    cause="a forward that counts steps, changes statistics or drops out",
)
def check_repeatable(loss: LossSubject) -> None:
    """Guards against hidden state.

    Fails it::

        self.steps += 1
    """
    module, scene = loss.used(), loss.scene()
    first, grads = generator_grads(loss, module, scene, loss.full)
    for seed in (3, 4):
        torch.manual_seed(seed)
        again, others = generator_grads(loss, module, scene, loss.full)
        require(not loss.differ(again, first), f"the generator's loss is {float(first):.6g}, then {float(again):.6g}")
        require(not loss.differ(others[1], grads[1]), f"gradient at the last layer: {loss.differ(others[1], grads[1])}")


@LOSS.check(
    rule="the generator's loss is the declared sum, and its terms are its parts",
    cause="a weight on the wrong term, a mean over a part of the dimensions, or a squared instead of an absolute error",
    applies=_declares_all,
)
def check_generator_values(loss: LossSubject) -> None:
    """Guards every number of the generator's pass by plain autograd: before the start, in the ramp, and after it.

    Fails it::

        generator = -logits_fake.sum()
    """
    for gain in (3.0, 1e-9):
        module, scene = loss.used(gain=gain), loss.scene()
        for step in _steps(loss):
            expected = loss.expected_generator(module, scene, step)
            value, terms = loss.adapter.generator(module, scene, step)
            _compare(loss, {"loss": value, **terms}, expected, f"step {step}", strict=loss.traits.strict)


@LOSS.check(
    rule="the generator's gradients are those of the declared sum, with the adaptive weight as a constant",
    cause="an adaptive weight that is not detached, or a gradient scale that is not divided out",
    applies=_declares_all,
)
def check_generator_gradients(loss: LossSubject) -> None:
    """Guards the gradients at the last layer, at what is before it, and at the quantizer's loss.

    Fails it::

        return reconstruction + adaptive_weight(reconstruction, generator, last_layer) * generator.detach()
    """
    module, scene = loss.used(), loss.scene()
    for step in _steps(loss):
        total = loss.expected_generator(module, scene, step)["loss"]
        expected = torch.autograd.grad(total, scene.leaves, retain_graph=True)
        _, grads = generator_grads(loss, module, scene, step)
        for name, actual, wanted in zip(("features", "last layer", "quantizer loss"), grads, expected, strict=True):
            text = loss.differ(actual, wanted)
            require(not text, f"step {step}, at the {name}: {text}")
    for factor in (8.0, 0.25):
        value, _ = loss.adapter.generator(module, scene, loss.full)
        (scaled,) = torch.autograd.grad(value * factor, scene.last_layer, retain_graph=True)
        text = loss.differ(scaled, factor * grads[1])
        require(not text, f"of {factor} times the loss, at the last layer: {text}")


@LOSS.check(
    rule="the discriminator's loss, its terms and its gradients are those of the declared pair",
    cause="a margin or a sign of the hinge, a missing half, or real and fake swapped",
    applies=_declares_all,
)
def check_discriminator_values(loss: LossSubject) -> None:
    """Guards every number of the discriminator's pass by plain autograd.

    Fails it::

        loss = F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean()  # the half is missing
    """
    module, scene = loss.used(), loss.scene()
    network = clone(loss.adapter.network(module))
    expected = loss.expected_discriminator(network, scene)
    expected["loss"] = (loss.traits.factor or 0.0) * expected["discriminator"]
    value, terms = loss.adapter.discriminator(module, scene, loss.full)
    _compare(loss, {"loss": value, **terms}, expected, "discriminator", strict=loss.traits.strict)
    value.reshape(()).backward()
    expected["loss"].backward()
    pairs = zip(loss.adapter.network(module).named_parameters(), network.parameters(), strict=True)
    for (name, actual), wanted in pairs:
        text = "none" if actual.grad is None or wanted.grad is None else loss.differ(actual.grad, wanted.grad)
        require(not text, f"gradient at {name}: {text}")


def _compare(
    subject: LossSubject, actual: dict[str, Tensor], expected: dict[str, Tensor], where: str, *, strict: bool
) -> None:
    for name, wanted in expected.items():
        if name not in actual and not strict:
            continue
        require(name in actual, f"{where}: there is no {name} among {', '.join(actual)}")
        found, wanted = actual[name].detach().reshape(()), wanted.detach()
        text = subject.differ(found, wanted)
        require(not text, f"{where}: {name} is {float(found):.6g} instead of {float(wanted):.6g}")


@LOSS.check(
    rule="terms have the same keys at every step, are detached float32 scalars, and the perceptual module is frozen",
    cause="terms of what is switched off left out, or logged with their graphs",
    applies=lambda subject: subject.traits.strict,
)
def check_loss_terms(loss: LossSubject) -> None:
    """Guards logs.

    Fails it::

        if step >= disc_start:
            terms["generator"] = generator
    """
    module, scene = loss.used(), loss.scene()
    for player in (loss.adapter.generator, loss.adapter.discriminator):
        keys = set()
        for step in (loss.traits.disc_start - 1, loss.full):
            value, terms = player(module, scene, step)
            keys.add(tuple(terms))
            require(value.shape == () and value.dtype == torch.float32, f"the loss is {tuple(value.shape)} {value.dtype}")
            for name, term in terms.items():
                require(term.shape == () and term.dtype == torch.float32, f"{name} is {tuple(term.shape)} {term.dtype}")
                require(not term.requires_grad, f"{name} requires grad")
        require(len(keys) == 1, f"terms before and after the start: {keys}")


@LOSS.check(
    rule="with autograd off, both players report their terms, and the adversarial part is left out of the loss",
    cause="autograd.grad for the adaptive weight in validation",
    applies=lambda subject: subject.traits.strict,
)
def check_without_autograd(loss: LossSubject) -> None:
    """Guards validation under no_grad.

    Fails it::

        weight = adaptive_weight(reconstruction, generator, last_layer)  # raises under no_grad
    """
    module, scene = loss.used(), loss.scene()
    with torch.no_grad():
        value, terms = loss.adapter.generator(module, scene, loss.full)
        loss.adapter.discriminator(module, scene, loss.full)
    require(float(terms["adaptive_weight"]) == 0, f"adaptive_weight is {float(terms['adaptive_weight']):.3g}")
    expected = terms["reconstruction"] + (loss.traits.codebook or 0.0) * terms["quantizer"]
    require(not loss.differ(value, expected), f"the loss is {float(value):.6g} instead of {float(expected):.6g}")
    require(bool(terms["generator"]), "the generator's term is 0")


@LOSS.check(
    rule="mixed precision changes numbers a little: gradients stay finite, and close",
    cause="a norm in float16 that overflows, or a gradient that underflows",
)
def check_loss_autocast(loss: LossSubject) -> None:
    """Guards the adaptive weight and both players under autocast.

    Fails it::

        weight = rec_grad.norm() / (gan_grad.norm() + 1e-4)  # in float16: 0 / 1e-4, or infinite
    """
    module, scene = loss.used(), loss.scene()
    value, grads = generator_grads(loss, module, scene, loss.full)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, others = generator_grads(loss, module, scene, loss.full)
        other, _ = loss.adapter.discriminator(module, scene, loss.full)
    require(bool(half.isfinite() and other.isfinite().all()), f"losses {float(half)}, {other.tolist()}")
    near = abs(float(half) - float(value)) <= 0.15 * max(abs(float(value)), 1.0)
    require(near, f"the generator's loss is {float(value):.4g}, under autocast {float(half):.4g}")
    bad = sum(int((~grad.isfinite()).sum()) for grad in others)
    require(bad == 0, f"{bad} values of the gradients are not finite under autocast")
    cosine = float((others[1] * grads[1]).sum() / (others[1].norm() * grads[1].norm()).clamp(min=1e-30))
    require(cosine > 0.95, f"gradient at the last layer: cosine {cosine:.3g} with that of float32")


def _refused(call: Any, *errors: type[Exception]) -> bool:
    try:
        call()
    except errors:
        return True
    return False


@LOSS.check(
    rule="what cannot be right is refused: other shapes, integer images, a frozen last layer, a second derivative",
    cause="broadcasting, or a gradient that is quietly zero",
    applies=lambda subject: subject.traits.strict,
)
def check_loss_refuses(loss: LossSubject) -> None:
    """Guards against mistakes that would train on with wrong numbers.

    Fails it::

        pixel = (images - reconstructions).abs().mean()  # (B, 3, H, W) and (B, 1, H, W) broadcast
    """
    module, scene = loss.used(), loss.scene()
    wrong = {
        "images of one channel": scene._replace(images=scene.images[:, :1]),
        "integer images": scene._replace(images=scene.images.to(torch.int64)),
    }
    for name, other in wrong.items():
        for player in (loss.adapter.generator, loss.adapter.discriminator):
            refused = _refused(lambda p=player, o=other: p(module, o, loss.full), ValueError, TypeError)
            require(refused, f"{name} are taken")
    for name, layer in {"frozen": scene.last_layer.detach(), "foreign": torch.ones(3, requires_grad=True)}.items():
        other = scene._replace(last_layer=layer)
        refused = _refused(lambda o=other: loss.adapter.generator(module, o, loss.full), ValueError)
        require(refused, f"a {name} last layer is taken")
    value, _ = loss.adapter.generator(module, scene, loss.full)
    refused = _refused(lambda: torch.autograd.grad(value, scene.last_layer, create_graph=True), RuntimeError)
    require(refused, "a second derivative is given, but is not the loss's")


@LOSS.check(
    rule="the perceptual module gets no gradients from the generator's pass",
    cause="a network that is not frozen",
    applies=lambda subject: subject.adapter.perceptual(subject.fresh()) is not None,
)
def check_perceptual_untouched(loss: LossSubject) -> None:
    """Guards the perceptual network against training.

    Fails it::

        self.perceptual = vgg16().features  # without requires_grad_(False)
    """
    module, scene = loss.used(), loss.scene()
    perceptual = loss.adapter.perceptual(module)
    value, _ = loss.adapter.generator(module, scene, loss.full)
    value.reshape(()).backward()
    named = perceptual.named_parameters() if isinstance(perceptual, nn.Module) else []
    touched = [name for name, parameter in named if parameter.grad is not None]
    require(not touched, f"gradients at {', '.join(touched[:5])}")


@LOSS.check(
    rule="the adaptive weight is |grad rec| / (|grad adv| + delta), clamped, without a gradient, and never NaN",
    cause="numerator and denominator swapped, a clamp that NaN passes, or a weight with a graph",
    applies=lambda subject: subject.traits.adaptive_weight is not None,
)
def check_adaptive_weight(loss: LossSubject) -> None:
    """Guards the function itself, in plain cases, at 0 / 0, at infinity, and for large and small losses.

    Fails it::

        torch.clamp(rec_grad.norm() / gan_grad.norm(), 0.0, 1e4)  # 0 / 0 is NaN, and passes the clamp
    """
    function = loss.traits.adaptive_weight
    if function is None:
        return
    layer = torch.randn(7, requires_grad=True)
    direction = torch.randn(2, 7)
    size = direction.norm(dim=1)
    for a, b, delta in ((1.0, 1.0, 0.0), (4.0, 0.5, 0.1), (3e3, 2.0, 1e-6), (1e-3, 5.0, 1e-6), (0.0, 0.0, 1e-6), (5.0, 0.0, 1e-6)):
        pair = (a * direction[0] @ layer, b * direction[1] @ layer)
        weight = function(*pair, layer, delta=delta)
        expected = float((a * size[0] / (b * size[1] + delta)).clamp(0.0, 1e4)) if a or b or delta else 0.0
        close = abs(float(weight) - expected) <= 1e-3 * max(abs(expected), 1e-3)
        require(close, f"gradients of norm {a:.3g} and {b:.3g} (times a constant): {float(weight)} instead of {expected}")
        require(not weight.requires_grad, "it has a graph")
    weight = function(3.0 * direction[0] @ layer, 1e-3 * direction[1] @ layer, layer, max_weight=2.0)
    require(float(weight) == 2.0, f"max_weight=2.0 gives {float(weight)}")
    for bad in (torch.nan, torch.inf):
        weight = function((bad * direction[0]) @ layer, direction[1] @ layer, layer)
        require(float(weight) == 0.0, f"with a gradient of {bad} it is {float(weight)}")

