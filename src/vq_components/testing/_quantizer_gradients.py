"""Checks of a quantizer: what its gradients are, and whom they move."""

from typing import Any

import torch
from torch import Tensor, nn

from ._compare import backward, differ, use_of
from ._engine import missing
from ._quantizer_adapters import QuantizerResult
from ._quantizer_subject import QUANTIZER, QuantizerSubject, has_setter, of_one_codebook
from ._report import fail, require


def _declares_loss(subject: QuantizerSubject) -> bool:
    return subject.traits.commitment_weight is not None


_NEEDS_WEIGHTS = of_one_codebook(missing((_declares_loss, "commitment_weight= and codebook_weight=")))


def _logs_errors(subject: QuantizerSubject) -> bool:
    return _declares_loss(subject) and not subject.traits.composite


def _only_in_training(subject: QuantizerSubject, module: Any, loss: Tensor) -> bool:
    """Whether this is the 0 of a quantizer that makes no loss in evaluation."""
    return not subject.traits.strict and not module.training and not bool(loss.detach().any())


def trained_parameters(module: Any) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def grads_of(output: Tensor, inputs: list[Tensor], cotangent: Tensor | None = None) -> list[Tensor | None]:
    if not output.requires_grad or not inputs:
        return [None] * len(inputs)
    grads = torch.autograd.grad(output, inputs, cotangent, retain_graph=True, allow_unused=True)
    return list(grads)


@QUANTIZER.check(
    rule="the output's gradient reaches the input, as the declared estimator says",
    cause="no straight-through estimator, or detach() on the wrong part of z + (quantized - z)",
    applies=lambda subject: subject.traits.estimator != "none",
)
def check_input_gradient(subject: QuantizerSubject) -> None:
    """Guards the path to the encoder: identity for straight-through, something finite and not zero for others.

    Fails it::

        quantized = z.detach() + (quantized - z)  # the gradient is detached with z
    """
    for training in (True, False) if subject.traits.strict else (True,):
        module = subject.started(training=training)
        for rank in subject.traits.space:
            z = subject.to_layout(torch.randn(4, *(4, 6, 2)[:rank], subject.traits.dim)).requires_grad_()
            quantized = subject.call(module, z).quantized
            cotangent = torch.randn_like(quantized)
            (grad,) = grads_of(quantized, [z], cotangent)
            mode = "training" if training else "evaluation"
            if grad is None:
                fail(f"{mode}: no gradient at the input")
                return
            require(bool(grad.isfinite().all()), f"{mode}: the gradient is not finite")
            require(bool(grad.any()), f"{mode}: the gradient is zero")
            if subject.traits.estimator == "straight_through":
                text = subject.differ(grad, cotangent)
                require(not text, f"{mode}: compared with the output's gradient, {text}")
        idle = (~subject.vectors(_gradient(subject, module, subject.input(64))).any(dim=0)).nonzero().flatten().tolist()
        require(not idle, f"{mode}: channels {idle} of the input get no gradient from any of 64 vectors")
        if subject.traits.strict:
            _check_extreme_gradients(subject, module, mode)


def _check_extreme_gradients(subject: QuantizerSubject, module: Any, mode: str) -> None:
    """At vectors that have hardly a direction, and at vectors opposite to their entry, or with an entry at zero."""
    if subject.traits.distance == "cosine":
        grad = _gradient(subject, module, 1e-9 * subject.input(64))
        most = float(grad.abs().max())
        require(most < 1e8, f"{mode}: a gradient of {most:.3g} at vectors of length 1e-9")
    if has_setter(subject):
        module.set_codebook_(torch.ones_like(subject.codebook(module)))
        grad = _gradient(subject, module, -torch.ones_like(subject.input(4)))
        require(bool(grad.isfinite().all()), f"{mode}: the gradient at minus an entry is not finite")
        module.set_codebook_(torch.zeros_like(subject.codebook(module)))
        grad = _gradient(subject, module, subject.input(4))
        require(bool(grad.isfinite().all()), f"{mode}: the gradient is not finite where the entry is zero")


def _gradient(subject: QuantizerSubject, module: Any, z: Tensor) -> Tensor:
    """Of a random combination of the output at ``z``."""
    leaf = z.requires_grad_()
    quantized = subject.call(module, leaf).quantized
    (grad,) = grads_of(quantized, [leaf], torch.randn_like(quantized))
    return torch.zeros_like(z) if grad is None else grad


@QUANTIZER.check(
    rule="the output's gradient moves no codebook: straight-through goes past it",
    cause="the entries are not detached in the straight-through estimator; declare trains_codebook=True where the "
    "output's gradient is meant to train them, or layers before or behind them",
    applies=lambda subject: not subject.traits.trains_codebook,
)
def check_output_moves_no_codebook(subject: QuantizerSubject) -> None:
    """Guards the codebook from the decoder's gradient.

    Fails it::

        quantized = z - z.detach() + codebook[indices]  # must be codebook[indices].detach()
    """
    module = subject.started()
    z = subject.input(32).requires_grad_()
    quantized = subject.call(module, z).quantized
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    grads = grads_of(quantized, list(named.values()), torch.randn_like(quantized))
    for name, grad in zip(named, grads, strict=True):
        moved = 0.0 if grad is None else float(grad.abs().max())
        require(not moved, f"{name} gets gradients up to {moved:.3g} from quantized alone")


@QUANTIZER.check(
    rule="the loss is the declared weighted sum: commitment_weight * mean((z - sg[e])^2) + "
    "codebook_weight * mean((sg[z] - e)^2)",
    cause="beta on the wrong term, or a sum, or a mean over a part of the dimensions",
    applies=_declares_loss,
    needs=_NEEDS_WEIGHTS,
)
def check_loss_value(subject: QuantizerSubject) -> None:
    """Guards the loss's scale.

    Fails it::

        loss = (z - e).square().sum(dim=-1).mean()  # dim times too large
    """
    traits = subject.traits
    weight = (traits.commitment_weight or 0.0) + (traits.codebook_weight or 0.0)
    for training in subject.modes:
        module, z = subject.started(training=training), subject.input(64)
        result = subject.call(module, z)
        expected = weight * (subject.vectors(z) - subject.vectors(result.quantized.detach())).square().mean()
        loss = result.loss.detach().reshape(())
        if _only_in_training(subject, module, loss):
            continue
        text, mode = subject.about(loss, expected), "training" if training else "evaluation"
        require(not text, f"{mode}: the loss is {float(loss):.6g} instead of {float(expected):.6g}")


@QUANTIZER.check(
    rule="the loss pulls the input toward its entry with commitment_weight, and the entry toward its vectors with "
    "codebook_weight",
    cause="detach() swapped between the two terms, or beta on the wrong one: the original's known bug",
    applies=_declares_loss,
    needs=_NEEDS_WEIGHTS,
)
def check_loss_gradients(subject: QuantizerSubject) -> None:
    """Guards which parameters each loss term moves, by the closed forms of both gradients.

    Fails it::

        loss = (e.detach() - z).square().mean() + beta * (e - z.detach()).square().mean()  # beta is on the codebook
    """
    traits = subject.traits
    for training in subject.modes:
        module = subject.started(training=training)
        for count in (64, 5):
            z = subject.input(count).requires_grad_()
            result = subject.call(module, z)
            if _only_in_training(subject, module, result.loss):
                continue
            error = (z - result.quantized).detach()
            # Entries that are computed from parameters are new ones in each call: what they get is not seen.
            codebooks = [subject.adapter.codebook(module)] if subject.adapter.codebook else []
            trained = [codebook for codebook in codebooks if codebook.requires_grad and codebook.is_leaf]
            grads = grads_of(result.loss.reshape(()), [z, *trained])
            expected = 2 * (traits.commitment_weight or 0.0) * error / z.numel()
            grad = torch.zeros_like(z) if grads[0] is None else grads[0]
            text = gradients_differ(grad, expected)
            require(not text, f"gradient at the input, compared with 2 commitment_weight (z - e) / N: {text}")
            for codebook in trained:
                rows = subject.flat(result.indices).long()
                pull = torch.zeros_like(codebook).index_add_(0, rows, -subject.vectors(error))
                expected = 2 * (traits.codebook_weight or 0.0) * pull / z.numel()
                grad = torch.zeros_like(codebook) if grads[1] is None else grads[1]
                text = gradients_differ(grad, expected)
                require(not text, f"gradient at the codebook, compared with 2 codebook_weight sum(e - z) / N: {text}")


def gradients_differ(grad: Tensor, expected: Tensor, *, digits: int = 3) -> str:
    tolerance = 10.0**-digits
    largest = max(float(expected.detach().abs().max()), 1e-4)
    return differ(grad, expected, rtol=tolerance, atol=0.01 * tolerance * largest)


@QUANTIZER.check(
    rule="every parameter gets a gradient from output and loss together",
    cause="a detach() too many, or a layer that is built and never called",
    applies=lambda subject: subject.traits.estimator != "none",
)
def check_every_parameter_is_trained(subject: QuantizerSubject) -> None:
    """Guards against parameters that no training moves.

    Fails it::

        loss = commitment_weight * (z - e.detach()).square().mean()  # and nothing trains the codebook
    """
    module = subject.started()
    z = subject.input(128).requires_grad_()
    total = torch.zeros(())
    for _ in range(8 if subject.traits.stochastic else 1):  # what is left out at random comes another time
        result = subject.call(module, z)
        total = total + result.quantized.square().mean() + result.loss.sum()
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    grads = grads_of(total, [parameter for _, parameter in named])
    idle = [name for (name, _), grad in zip(named, grads, strict=True) if grad is None or not bool(grad.any())]
    require(not idle, f"no gradient at {', '.join(idle)}")
    bad = [name for (name, _), grad in zip(named, grads, strict=True) if grad is not None and not grad.isfinite().all()]
    require(not bad, f"a gradient that is not finite at {', '.join(bad)}")
    fixed = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    if subject.traits.strict and fixed:  # and stays so where all of a model is set to be trained
        result = subject.call(module.requires_grad_(), z)
        backward(result.quantized.square().mean() + result.loss)
        moved = [name for name in fixed if module.get_parameter(name).grad is not None]
        require(not moved, f"requires_grad_() of all parameters lets {', '.join(moved)} learn")


@QUANTIZER.check(
    rule="two forwards may come before one backward",
    cause="a forward that writes to tensors which an earlier one keeps for its backward",
)
def check_two_forwards_one_backward(subject: QuantizerSubject) -> None:
    """Guards losses that need two reconstructions, and gradient accumulation by summed losses.

    Fails it::

        self.codebook.data = self.codebook.data.lerp(means, 0.01)  # in forward, where the loss keeps the codebook
    """
    module = subject.started()
    z = subject.input(32).requires_grad_()
    results = [subject.call(module, z * factor) for factor in (1.0, 2.0)]
    total = sum((result.loss.sum() + result.quantized.square().mean() for result in results), torch.zeros(()))
    if total.requires_grad:
        backward(total)
    if subject.traits.estimator != "none":
        require(z.grad is not None and bool(z.grad.isfinite().all()), "no finite gradient at the input")


@QUANTIZER.check(
    rule="terms are detached float32 scalars that say what they are called",
    cause="a term that is logged with its graph, weighted, or computed with masked positions",
    applies=lambda subject: subject.traits.strict,
)
def check_terms(subject: QuantizerSubject) -> None:
    """Guards what is logged: both errors, unweighted; perplexity and usage of this batch, in the mean over stages.

    Fails it::

        terms = {"commitment": commitment_weight * commitment}
    """
    for training in subject.modes:
        module, z = subject.started(training=training), subject.input(64).requires_grad_()
        result = subject.call(module, z)
        terms, expected = result.terms or {}, _expected_terms(subject, z, result)
        if _logs_errors(subject):
            require(expected.keys() <= terms.keys(), f"terms are {', '.join(terms)}")
        for name, term in terms.items():
            require(term.shape == () and term.dtype == torch.float32, f"{name} is {tuple(term.shape)} {term.dtype}")
            require(not term.requires_grad, f"{name} requires grad")
        for name in expected.keys() & terms.keys():
            term, value = terms[name], expected[name]
            require(not subject.about(term, value), f"{name} is {float(term):.6g} instead of {float(value):.6g}")
        certain, diverse = (terms.get(name, torch.zeros(())) for name in ("entropy", "diversity"))
        require(
            float(certain - diverse) <= subject.traits.atol, f"entropy {certain:.6g} is above diversity {diverse:.6g}"
        )


def _expected_terms(subject: QuantizerSubject, z: Tensor, result: QuantizerResult) -> dict[str, Tensor]:
    size = subject.traits.codebook_size or 1
    stages = subject.flat(result.indices).flatten(1).unbind(dim=1) if subject.traits.index_shape else [result.indices]
    counts = torch.stack([torch.bincount(stage.flatten(), minlength=size) for stage in stages])
    expected = {name: value.mean() for name, value in use_of(counts).items()}
    if _logs_errors(subject):
        error = (subject.vectors(z) - subject.vectors(result.quantized)).detach().double().square().mean()
        expected |= {"commitment": error, "codebook": error}
    return expected
