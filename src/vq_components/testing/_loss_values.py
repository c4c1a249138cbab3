"""Checks of a VQ-GAN loss: its values and gradients."""

import torch
from torch import Tensor

from ._compare import backward, clone, power_iterations
from ._loss_players import generator_grads
from ._loss_subject import LOSS, LossSubject
from ._report import require


def _declares_all(subject: LossSubject) -> bool:
    return subject.declares_all


def _steps(subject: LossSubject) -> list[int]:
    start, ramp = subject.traits.gen_start, subject.traits.gen_ramp
    return [subject.before(start), start, *([start + ramp // 2] if ramp else []), subject.full]


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
            other, _ = loss.discriminator(module, scene, loss.full)
            require(
                bool(value.isfinite() and other.isfinite().all()), f"{kind}: losses {float(value)}, {other.tolist()}"
            )
            bad = sum(int((~grad.isfinite()).sum()) for grad in grads)
            require(bad == 0, f"{kind}: {bad} values of the generator's gradients are not finite")


@LOSS.check(
    rule="eval() changes no value and no gradient, as long as autograd is on",
    cause="an adaptive weight that is 0 in evaluation, or a perceptual network with dropout",
    applies=lambda subject: not subject.traits.stochastic,
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
    first, _ = loss.discriminator(module, scene, loss.full)
    second, _ = loss.discriminator(other, scene, loss.full)
    numbers = f"the discriminator's loss is {float(first.detach()):.6g}, in eval {float(second.detach()):.6g}"
    require(not loss.differ(second.detach(), first.detach()), numbers)


@LOSS.check(
    rule="a pass that is repeated gives the same numbers",
    cause="a forward that counts steps, changes statistics or drops out",
    applies=lambda subject: not subject.traits.stochastic,
)
def check_repeatable(loss: LossSubject) -> None:
    """Guards against hidden state.

    Fails it::

        self.steps += 1
    """
    module, scene = loss.used(), loss.scene()
    state = loss.adapter.network(module).state_dict(keep_vars=True)
    iterated = {name: state[name].clone() for name in power_iterations(loss.adapter.network(module))}
    first, grads = generator_grads(loss, module, scene, loss.full)
    for seed in (3, 4):
        for name, before in iterated.items():  # of spectral normalization, by each training forward
            state[name].copy_(before)
        again, others = generator_grads(loss, module, scene, loss.full, seed=seed)
        require(not loss.differ(again, first), f"the generator's loss is {float(first):.6g}, then {float(again):.6g}")
        require(not loss.differ(others[1], grads[1]), f"gradient at the last layer: {loss.differ(others[1], grads[1])}")


@LOSS.check(
    rule="the generator's loss is the declared sum, and its terms are its parts",
    cause="a weight on the wrong term, a mean over a part of the dimensions, or a squared instead of an absolute error",
    applies=_declares_all,
    needs=lambda subject: subject.undeclared,
)
def check_generator_values(loss: LossSubject) -> None:
    """Guards every number of the generator's pass by plain autograd: before the start, in the ramp, and after it.

    Fails it::

        generator = -logits_fake.sum()
    """
    for gain in (3.0, 1e-9, 0.0):  # weak and no pull: the adaptive weight is bounded
        module, scene = loss.used(gain=gain), loss.scene()
        for step in _steps(loss):
            expected = loss.expected_generator(module, scene, step)
            value, terms = loss.generator(module, scene, step)
            _compare(loss, value, terms, expected, f"step {step}")


@LOSS.check(
    rule="the generator's gradients are those of the declared sum, with the adaptive weight as a constant",
    cause="an adaptive weight that is not detached, or a gradient scale that is not divided out",
    applies=_declares_all,
    needs=lambda subject: subject.undeclared,
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
        value, _ = loss.generator(module, scene, loss.full)
        (scaled,) = torch.autograd.grad(value * factor, scene.last_layer, retain_graph=True)
        text = loss.differ(scaled, factor * grads[1])
        require(not text, f"of {factor} times the loss, at the last layer: {text}")


@LOSS.check(
    rule="the discriminator's loss, its terms and its gradients are those of the declared pair",
    cause="a margin or a sign of the hinge, a missing half, or real and fake swapped",
    applies=lambda subject: subject.traits.disc_loss is not None and not subject.traits.stochastic,
    needs=lambda subject: "" if subject.traits.stochastic else "disc_loss=, and factor= if its scale is compared too",
)
def check_discriminator_values(loss: LossSubject) -> None:
    """Guards every number of the discriminator's pass by plain autograd.

    Fails it::

        loss = F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean()  # the half is missing
    """
    module, scene = loss.used(), loss.scene()
    network = clone(loss.adapter.network(module))
    expected = loss.expected_discriminator(network, scene)
    value, terms = loss.discriminator(module, scene, loss.full)
    factor = loss.traits.factor
    if factor is None:  # any scale
        factor = float((value / expected["discriminator"]).detach())
    expected["loss"] = factor * expected["discriminator"]
    _compare(loss, value, terms, expected, "discriminator")
    backward(value.reshape(()))
    backward(expected["loss"])
    pairs = zip(loss.adapter.network(module).named_parameters(), network.parameters(), strict=True)
    for (name, actual), wanted in pairs:
        if actual.grad is None and wanted.grad is None:
            continue  # frozen
        text = "none" if actual.grad is None or wanted.grad is None else loss.differ(actual.grad, wanted.grad)
        require(not text, f"gradient at {name}: {text}")


def _compare(
    subject: LossSubject, value: Tensor, terms: dict[str, Tensor], expected: dict[str, Tensor], where: str
) -> None:
    """The loss, and if strict its terms: others log what they like under these names."""
    actual = {**terms, "loss": value} if subject.traits.strict else {"loss": value}
    for name, wanted in expected.items():
        if name not in actual and not subject.traits.strict:
            continue
        require(name in actual, f"{where}: there is no {name} among {', '.join(actual)}")
        found, wanted = actual[name].detach().reshape(()), wanted.detach()
        text = subject.differ(found, wanted)
        require(not text, f"{where}: {name} is {float(found):.6g} instead of {float(wanted):.6g}")
