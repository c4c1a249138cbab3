"""Checks of a VQ-GAN loss: which player it moves, in which direction, and when."""

import torch
from torch import Tensor, nn

from ._compare import (
    backward,
    clone,
    modes_of,
    power_iterations,
    require_modes,
    state_difference,
    state_of,
    state_without,
)
from ._loss_adapters import Scene
from ._loss_subject import LOSS, LossSubject
from ._report import fail, require


def generator_grads(
    subject: LossSubject, module: object, scene: Scene, step: int, *, seed: int = 1
) -> tuple[Tensor, list[Tensor]]:
    """The generator's loss, and its gradients at the scene's leaves, zero where there is none."""
    loss, _ = subject.generator(module, scene, step, seed=seed)
    loss = loss.reshape(())
    grads = torch.autograd.grad(loss, scene.leaves, retain_graph=True, allow_unused=True)
    found = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(scene.leaves, grads, strict=True)]
    return loss.detach(), found


@LOSS.check(
    rule="the reconstruction part pulls the reconstructions toward the images",
    cause="arguments swapped in a signed difference, or a minus too many",
)
def check_reconstruction_pulls(loss: LossSubject) -> None:
    """Guards the sign of the reconstruction gradient: a small step against it lowers the error.

    Fails it::

        loss = -perceptual(images, reconstructions).mean()
    """
    scene = loss.scene()
    module, step = loss.unopposed(loss.used())
    value, _ = loss.generator(module, scene, step)
    (grad,) = torch.autograd.grad(value.reshape(()), scene.reconstructions, allow_unused=True)
    require(grad is not None, "no gradient at the reconstructions")
    with torch.no_grad():
        before = (scene.reconstructions - scene.images).abs().mean()
        after = (scene.reconstructions - 1e-2 * grad / grad.abs().max() - scene.images).abs().mean()
    require(
        bool(after < before), f"mean |x - y| is {float(before):.6g}, and {float(after):.6g} after a step down the loss"
    )


@LOSS.check(
    rule="the adversarial part of the generator's loss raises the discriminator's logits of reconstructions",
    cause="a sign lost, or targets of real and fake swapped",
    applies=lambda subject: not subject.traits.stochastic,
)
def check_generator_fools(loss: LossSubject) -> None:
    """Guards the sign of the adversarial gradient, found as what the start of the generator adds.

    Fails it::

        g_loss = logits_fake.mean()
    """
    module, scene = loss.used(), loss.scene()
    # What starts in the same step, such as matched features, is not meant.
    calm, step = loss.unopposed(module) if loss.traits.strict else (loss.without_pull(module), loss.full)
    _, off = generator_grads(loss, calm, scene, step)
    _, on = generator_grads(loss, clone(module), scene, loss.full)
    push = on[1] - off[1]
    network = clone(loss.adapter.network(module))
    require(bool(push.any()), "the discriminator adds nothing to the gradient at the last layer")
    logits = network(loss.with_condition(scene.reconstructions, scene)).mean()
    (rise,) = torch.autograd.grad(logits, scene.last_layer)
    slope = float(-(push * rise).sum() / (push.norm() * rise.norm()).clamp(min=1e-30))
    require(
        slope > (0.3 if loss.traits.strict else 0.0),
        f"cosine between the step and the direction in which fake logits rise: {slope:.3g}",
    )


@LOSS.check(
    rule="the discriminator's loss raises logits of images and lowers those of reconstructions",
    cause="input and target of a cross-entropy swapped: no gradient reaches fake logits",
)
def check_discriminator_tells_apart(loss: LossSubject) -> None:
    """Guards the discriminator's gradient: after some steps it tells images and reconstructions apart.

    Fails it::

        F.binary_cross_entropy_with_logits(torch.zeros_like(fake), fake)
    """
    module, scene = loss.fresh(), loss.scene()
    network = loss.adapter.network(module)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(1 if loss.traits.strict else 5):
        for _ in range(20):
            optimizer.zero_grad()
            value, _ = loss.discriminator(module, scene, loss.full)
            backward(value.reshape(()))
            optimizer.step()
        real, fake = _mean_logits(loss, network, scene)
        if real > fake + 0.1:
            return
    fail(f"mean logits of images {real:.3g}, of reconstructions {fake:.3g}")


def _mean_logits(loss: LossSubject, network: nn.Module, scene: Scene) -> tuple[float, float]:
    """Of images and of reconstructions, whichever way of asking for them tells them apart better."""
    images = [loss.with_condition(each.detach(), scene) for each in (scene.images, scene.reconstructions)]
    with torch.no_grad():
        pairs = [(network(images[0]).mean(), network(images[1]).mean())]
        # As one batch too: batch normalization takes it for what it was trained on.
        pairs.append(tuple(logits.mean() for logits in network(torch.cat(images)).chunk(2)))
    real, fake = max(pairs, key=lambda pair: float(pair[0] - pair[1]))
    return float(real), float(fake)


@LOSS.check(
    rule="the generator's pass leaves the discriminator alone: no gradients, no statistics",
    cause="parameters that are not frozen, and batch normalization that counts reconstructions of the generator's pass",
)
def check_generator_leaves_discriminator(loss: LossSubject) -> None:
    """Guards the discriminator's parameters, gradients and buffers in the generator's pass.

    Fails it::

        logits_fake = self.discriminator(reconstructions)  # backward() fills the discriminator's .grad
    """
    for module in (loss.used(), loss.fresh()):
        network, scene = loss.adapter.network(module), loss.scene()
        iterated = power_iterations(network)  # by every forward
        before, modes = state_without(network, iterated), modes_of(network)
        named = dict(network.named_parameters())
        trained = [name for name, parameter in named.items() if parameter.requires_grad]
        value, _ = loss.generator(module, scene, loss.full)
        backward(value.reshape(()))
        touched = [name for name, parameter in named.items() if parameter.grad is not None]
        require(not touched, f"gradients at {len(touched)} of {len(named)} parameters of the discriminator")
        text = state_difference(state_without(network, iterated), before)
        require(not text, f"state of the discriminator: {text}")
        require_modes(network, modes, "after the generator's pass, the discriminator's")
        frozen = [name for name in trained if not named[name].requires_grad]
        require(not frozen, f"{len(frozen)} parameters were left frozen")


@LOSS.check(
    rule="the discriminator's pass leaves the generator alone",
    cause="reconstructions that are not detached",
)
def check_discriminator_leaves_generator(loss: LossSubject) -> None:
    """Guards the generator in the discriminator's pass, before and after the start.

    Fails it::

        logits_fake = self.discriminator(reconstructions)  # must be reconstructions.detach()
    """
    for step in (loss.before(loss.traits.disc_start), loss.full):
        module, scene = loss.used(), loss.scene()
        value, _ = loss.discriminator(module, scene, step)
        if value.requires_grad:
            backward(value.reshape(()))
        leaves = ("features", "last layer", "quantizer loss")
        touched = [name for name, leaf in zip(leaves, scene.leaves, strict=True) if leaf.grad is not None]
        require(not touched, f"step {step}: gradients at the {', '.join(touched)}")


@LOSS.check(
    rule="before disc_start the discriminator does not learn; from it on it does",
    cause="> instead of >=, or the threshold of the generator's side on both",
)
def check_discriminator_start(loss: LossSubject) -> None:
    """Guards the first step of the discriminator, exactly.

    Fails it::

        factor = 1.0 if step > disc_start else 0.0
    """
    start = loss.traits.disc_start
    for step in dict.fromkeys((loss.before(start - 1), loss.before(start), start, start + 1)):
        module, scene = loss.used(), loss.scene()
        network = loss.adapter.network(module)
        before = state_of(network)
        value, _ = loss.discriminator(module, scene, step)
        if value.requires_grad:
            backward(value.reshape(()))
        moves = any(p.grad is not None and bool(p.grad.any()) for p in network.parameters())
        require(moves == (step >= start), f"step {step} with disc_start={start}: {'a' if moves else 'no'} gradient")
        if loss.traits.strict and step < start:
            require(value.requires_grad, f"step {step}: the loss cannot be backpropagated")
            text = state_difference(state_of(network), before)
            require(not text, f"step {step}: the discriminator was called: {text}")
            require(float(value.detach()) == 0.0, f"step {step}: the loss is {float(value.detach()):.3g}")


@LOSS.check(
    rule="before gen_start the generator does not feel the discriminator; then its pull grows over gen_ramp steps",
    cause="> instead of >=, or a ramp that counts from disc_start",
)
def check_generator_start(loss: LossSubject) -> None:
    """Guards the first step of the generator's adversarial term, and its ramp.

    Fails it::

        ramp = (step - gen_start) / gen_ramp  # 0 in the first step, and above 1 later
    """
    start, ramp = loss.traits.gen_start, loss.traits.gen_ramp
    module, scene = loss.used(), loss.scene()
    calm, early = loss.unopposed(module)
    _, off = generator_grads(loss, calm, scene, early)
    _, full = generator_grads(loss, clone(module), scene, loss.full)
    whole = float((full[1] - off[1]).norm())
    before = (loss.before(start - 1), loss.before(start))
    for step in (*before, start, start + 1, start + max(ramp - 1, 0), start + ramp, start + 10 * ramp + 5):
        share = min(1.0, (step - start + 1) / ramp) if ramp else 1.0
        expected = share if step >= start else 0.0
        _, grads = generator_grads(loss, clone(module), scene, step)
        found = float((grads[1] - off[1]).norm()) / max(whole, 1e-30)
        require(abs(found - expected) < 1e-2, f"step {step}, gen_start={start}: share {found:.3g}, not {expected:.3g}")


@LOSS.check(
    rule="each weight has an effect",
    cause="an argument that is stored and never used, like pixelloss_weight in the original",
    applies=lambda subject: len(subject.traits.weights) > 0,
    needs="weights=, names of attributes that weight its parts",
)
def check_weights_have_effect(loss: LossSubject) -> None:
    """Guards every weight: the gradient changes when it does.

    Fails it::

        self.pixel_weight = pixelloss_weight  # and rec_loss = |x - y|
    """
    module, scene = loss.used(), loss.scene()
    for name in loss.traits.weights:
        require(hasattr(module, name), f"no attribute {name}: the traits' weights= names attributes of the loss")
        other = clone(module)
        setattr(other, name, 2.0 * getattr(module, name) + 0.5)
        # Before the start too: there, no adaptive weight divides a common factor out.
        idle = True
        for step in (loss.before(loss.traits.gen_start), loss.full):
            _, grads = generator_grads(loss, clone(module), scene, step)
            _, changed = generator_grads(loss, clone(other), scene, step)
            idle &= all(torch.allclose(a, b, rtol=1e-4, atol=1e-9) for a, b in zip(grads, changed, strict=True))
        require(not idle, f"{name}: {getattr(module, name)} -> {getattr(other, name)} changes no gradient")
