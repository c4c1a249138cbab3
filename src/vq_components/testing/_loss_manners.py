"""Checks of a VQ-GAN loss: what it promises beyond its values."""

from functools import partial

import torch
from torch import Tensor, nn

from ._compare import backward, state_difference, state_of
from ._loss_players import generator_grads
from ._loss_subject import LOSS, LossSubject
from ._report import refused, require


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
    for player in (loss.generator, loss.discriminator):
        keys = set()
        for step in (loss.traits.disc_start - 1, loss.full):
            value, terms = player(module, scene, step)
            keys.add(tuple(terms))
            require(
                value.shape == () and value.dtype == torch.float32, f"the loss is {tuple(value.shape)} {value.dtype}"
            )
            for name, term in terms.items():
                require(term.shape == () and term.dtype == torch.float32, f"{name} is {tuple(term.shape)} {term.dtype}")
                require(not term.requires_grad, f"{name} requires grad")
        require(len(keys) == 1, f"terms before and after the start: {keys}")
        kept = value.detach().clone()
        for name, term in terms.items():
            term.add_(7.0)  # as a reduction over processes does
            require(torch.equal(value.detach(), kept), f"writing to the term {name} changes the loss")
    value = loss.generator(module, scene, loss.full)[0].detach()
    each = scene.quantizer_loss + torch.tensor([-0.2, 0.1, 0.3, -0.2])
    found = loss.generator(module, scene._replace(quantizer_loss=each), loss.full)[0].detach()
    require(
        not loss.differ(found, value), f"with one quantizer loss for each image {float(found):.6g}, not {value:.6g}"
    )


@LOSS.check(
    rule="a forward changes nothing in evaluation, and in training, after the first one, no parameter",
    cause="normalization that starts from data whenever it is called",
)
def check_loss_changes_nothing(loss: LossSubject) -> None:
    """Guards the discriminator against everybody but its optimizer.

    Fails it::

        self.loc.copy_(-x.mean(dim=(0, 2, 3)))  # without looking at self.training and self.initialized
    """
    for training in (False, True):
        module = loss.fresh().train(training)
        for player in (loss.generator, loss.discriminator) if training else ():
            player(module, loss.scene(), loss.full)
        before = _kept_by_a_forward(module)
        for player in (loss.generator, loss.discriminator):
            player(module, loss.scene(), loss.full)
            text = state_difference(_kept_by_a_forward(module), before)
            require(not text, f"{'training' if training else 'evaluation'}: {text}")


def _kept_by_a_forward(module: nn.Module) -> dict[str, Tensor]:
    """In evaluation the whole state, in training the parameters."""
    if not module.training:
        return state_of(module)
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@LOSS.check(
    rule="only the reconstructions get a gradient from the reconstruction and the players, not images or condition",
    cause="a detach() that is missing where the images come from a network of their own",
    applies=lambda subject: subject.traits.strict,
)
def check_targets_get_no_gradient(loss: LossSubject) -> None:
    """Guards what the images were made with, and the network that made the condition.

    Fails it::

        logits = self.discriminator(torch.cat([reconstructions, cond], dim=1))
    """
    for player in (loss.generator, loss.discriminator):
        module, scene = loss.used(), loss.scene()
        named = {"images": scene.images, "cond": scene.cond}
        targets = {name: target.requires_grad_() for name, target in named.items() if target is not None}
        backward(player(module, scene, loss.full)[0])
        for name, target in targets.items():
            require(target.grad is None, f"{name} got a gradient")


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
        value, terms = loss.generator(module, scene, loss.full)
        loss.discriminator(module, scene, loss.full)
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
        other, _ = loss.discriminator(module, scene, loss.full)
    require(bool(half.isfinite() and other.isfinite().all()), f"losses {float(half)}, {other.tolist()}")
    near = abs(float(half) - float(value)) <= 0.15 * max(abs(float(value)), 1.0)
    require(near, f"the generator's loss is {float(value):.4g}, under autocast {float(half):.4g}")
    bad = sum(int((~grad.isfinite()).sum()) for grad in others)
    require(bad == 0, f"{bad} values of the gradients are not finite under autocast")
    cosine = float((others[1] * grads[1]).sum() / (others[1].norm() * grads[1].norm()).clamp(min=1e-30))
    require(cosine > 0.95, f"gradient at the last layer: cosine {cosine:.3g} with that of float32")


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
        "images of another batch": scene._replace(images=scene.images[:1]),
        "integer images": scene._replace(images=scene.images.to(torch.int64)),
    }
    for name, other in wrong.items():
        for player in (loss.generator, loss.discriminator):
            call = partial(player, module, other, loss.full)
            require(refused(call, ValueError, TypeError), f"{name} are taken")
    for name, layer in {"frozen": scene.last_layer.detach(), "foreign": torch.ones(3, requires_grad=True)}.items():
        call = partial(loss.generator, module, scene._replace(last_layer=layer), loss.full)
        require(refused(call, ValueError), f"a {name} last layer is taken")
    value, _ = loss.generator(module, scene, loss.full)
    twice = partial(torch.autograd.grad, value, scene.last_layer, create_graph=True)
    require(refused(twice, RuntimeError), "a second derivative is given, but is not the loss's")


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
    value, _ = loss.generator(module, scene, loss.full)
    backward(value.reshape(()))
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
    for a, b, delta in (
        (1.0, 1.0, 0.0),
        (4.0, 0.5, 0.1),
        (3e3, 2.0, 1e-6),
        (1e-3, 5.0, 1e-6),
        (0.0, 0.0, 1e-6),
        (5.0, 0.0, 1e-6),
    ):
        pair = (a * direction[0] @ layer, b * direction[1] @ layer)
        weight = function(*pair, layer, delta=delta)
        expected = float((a * size[0] / (b * size[1] + delta)).clamp(0.0, 1e4)) if a or b or delta else 0.0
        close = abs(float(weight) - expected) <= 1e-3 * max(abs(expected), 1e-3)
        require(
            close, f"gradients of norm {a:.3g} and {b:.3g} (times a constant): {float(weight)} instead of {expected}"
        )
        require(not weight.requires_grad, "it has a graph")
    weight = function(3.0 * direction[0] @ layer, 1e-3 * direction[1] @ layer, layer, max_weight=2.0)
    require(float(weight) == 2.0, f"max_weight=2.0 gives {float(weight)}")
    for bad in (torch.nan, torch.inf):
        weight = function((bad * direction[0]) @ layer, direction[1] @ layer, layer)
        require(float(weight) == 0.0, f"with a gradient of {bad} it is {float(weight)}")
