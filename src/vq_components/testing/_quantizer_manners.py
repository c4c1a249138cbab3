"""Checks of a quantizer: what it refuses, and what it leaves alone."""

import math
from typing import Any

import torch

from ._compare import backward, gap, state_difference, state_of
from ._engine import BASIC, isolated
from ._quantizer_subject import QUANTIZER, QuantizerSubject, has_decode
from ._report import fail, require

_SPACES: dict[int, list[tuple[int, ...]]] = {0: [()], 1: [(6,), (1,)], 2: [(5, 3), (1, 6), (1, 1)], 3: [(2, 5, 3)]}


@QUANTIZER.check(
    rule="an input with another number of channels is refused",
    cause="view(-1, dim) at the door, which takes any size that dim divides; or broadcasting, which takes 1",
)
def check_wrong_channels(subject: QuantizerSubject) -> None:
    """Guards against inputs of twice or half the channels, and of channels in another place.

    Fails it::

        flat = z.permute(0, 2, 3, 1).reshape(-1, dim)  # (B, 2 * dim, H, W) becomes twice as many vectors
    """
    allowed: tuple[type[Exception], ...] = (ValueError, TypeError) if subject.traits.strict else (Exception,)
    for dim in {subject.traits.dim + 1, 2 * subject.traits.dim, subject.traits.dim // 2} - {0}:
        rank = max(subject.traits.space)
        z = subject.to_layout(torch.randn(4, *(4, 6, 2)[:rank], dim))
        module = subject.started()
        try:
            result = subject.call(module, z)
        except allowed:
            continue
        fail(f"{dim} channels instead of {subject.traits.dim}: accepted, with output {tuple(result.quantized.shape)}")


@QUANTIZER.check(
    rule="an empty batch gives empty results, a finite loss, and changes no statistics",
    cause="mean() over nothing, which is NaN, or an average that decays without a vector",
)
def check_empty_batch(subject: QuantizerSubject) -> None:
    """Guards the last, empty batch of a process, and masked-out batches.

    Fails it::

        loss = (z - e).square().mean()  # NaN for an empty batch
    """
    for training in (True, False):
        module = subject.started(training=training)
        before = state_of(module)
        z = subject.to_layout(torch.randn(0, *subject.space, subject.traits.dim)).requires_grad_()
        result = subject.call(module, z)
        require(result.quantized.shape[0] == 0, f"quantized has shape {tuple(result.quantized.shape)}")
        for name, term in {"loss": result.loss, **(result.terms or {})}.items():
            require(bool(term.isfinite().all()), f"{name} is {term.tolist()}")
        if result.loss.requires_grad:
            backward(result.loss.sum() + result.quantized.sum())
        subject.update(module)
        # NaN alone: infinity may stand for "none yet".
        bad = [name for name, tensor in state_of(module).items() if bool(tensor.isnan().any())]
        bad = [name for name in bad if not bool(before[name].isnan().any())]
        require(not bad, f"NaN afterwards: {', '.join(bad)}")
        if subject.traits.strict:
            text = state_difference(state_of(module), before)
            require(not text, f"the state changed: {text}")


@QUANTIZER.check(
    rule="with autograd off, results and state are those with it",
    cause="a condition on requires_grad where the mode is meant",
    applies=lambda subject: subject.traits.strict,
)
def check_autograd_off(subject: QuantizerSubject) -> None:
    """Guards a codebook that is fitted to latents without a graph, before the training.

    Fails it::

        if self.training and z.requires_grad:
            self.count(indices)
    """
    for training in (True, False):
        module = subject.started(training=training)
        z, answers = subject.input(64), []
        for enabled in (True, False):
            twin = subject.copy(module)
            with isolated(1), torch.set_grad_enabled(enabled):
                answers.append((subject.call(twin, z.clone().requires_grad_(enabled)), twin))
        (result, twin), (expected, other) = answers
        text = subject.results_differ(result, expected) or subject.states_differ(twin, other)
        require(not text, f"{'training' if training else 'evaluation'}: {text}")


def _settings_of_torch() -> dict[str, Any]:
    backends = [getattr(torch.backends, name, None) for name in ("cuda", "mkldnn")]
    products = [getattr(getattr(backend, "matmul", None), "fp32_precision", None) for backend in backends]
    return {
        "precision of float32 products": products if any(products) else torch.get_float32_matmul_precision(),
        "default dtype": torch.get_default_dtype(),
        "number of threads": torch.get_num_threads(),
        "autograd": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


@QUANTIZER.check(
    rule="forward and backward leave torch's own settings as they are",
    cause="a setting that is switched for one operation, and then to its default instead of what it was",
)
def check_settings_of_torch(subject: QuantizerSubject) -> None:
    """Guards the rest of the program: precision of products, autograd, autocast, default dtype, threads.

    Fails it::

        torch.set_float32_matmul_precision("highest")  # for the search
    """
    module, precision = subject.started(), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        before = _settings_of_torch()
        result = subject.call(module, subject.input(64).requires_grad_())
        if result.loss.requires_grad:
            backward(result.loss.sum() + result.quantized.sum())
        after = _settings_of_torch()
    finally:
        torch.set_float32_matmul_precision(precision)
    changed = [f"{name}: {before[name]} -> {now}" for name, now in after.items() if now != before[name]]
    require(not changed, "; ".join(changed))
    if subject.traits.strict and hasattr(torch.backends, "fp32_precision"):
        _check_inherited_precision(subject, module)


def _check_inherited_precision(subject: QuantizerSubject, module: Any) -> None:
    """A precision that is inherited from the setting above follows it afterwards as well."""
    backends: Any = torch.backends
    saved, own = backends.fp32_precision, backends.mkldnn.matmul.fp32_precision
    try:
        backends.mkldnn.matmul.fp32_precision = "none"  # it inherits
        backends.fp32_precision = "tf32"
        subject.call(module, subject.input(16))
        backends.fp32_precision = "ieee"
        found = backends.mkldnn.matmul.fp32_precision
    finally:
        backends.fp32_precision, backends.mkldnn.matmul.fp32_precision = saved, own
    require(found == "ieee", f"the precision of all products is set to ieee afterwards, and that of matmul is {found}")


@QUANTIZER.check(
    rule="forward and backward leave the input alone, and changing the result changes no codebook",
    cause="an in-place operation on a view of the input, such as normalize or /= temperature",
    rank=BASIC,
)
def check_input_untouched(subject: QuantizerSubject) -> None:
    """Guards the caller's tensors.

    Fails it::

        flat = z.movedim(1, -1).reshape(-1, dim)
        flat /= flat.norm(dim=1, keepdim=True)  # reshape may be a view
    """
    for training in (True, False):
        for rank in subject.traits.space:
            module = subject.started(training=training)
            z = subject.to_layout(torch.randn(4, *(4, 6, 2)[:rank], subject.traits.dim))
            kept = z.clone()
            with isolated(1):
                result = subject.call(module, z)
                before = state_of(module)
                result.quantized.detach().fill_(7.0)
                result.indices.fill_(0)
                if has_decode(subject):
                    subject.decode(module, result.indices, z).detach().fill_(7.0)
            text = gap(z, kept)
            require(not text, f"{text} in the input {tuple(z.shape)}")
            text = state_difference(state_of(module), before)
            require(not text, f"writing to the result changed the module: {text}")


@QUANTIZER.check(
    rule="the loss is a mean over positions: a batch that is repeated has the same loss",
    cause="sum() instead of mean(), or a mean over a part of the dimensions",
    applies=lambda subject: subject.traits.batched_loss,
)
def check_loss_is_a_mean(subject: QuantizerSubject) -> None:
    """Guards loss weights against batch and image size.

    Fails it::

        loss = (z - e).square().sum()
    """
    for training in subject.modes:
        module = subject.started(training=training)
        vectors = subject.vectors(subject.input(32))
        once = subject.call_copy(module, subject.from_vectors(vectors)).loss.detach().reshape(())
        twice = subject.call_copy(module, subject.from_vectors(vectors.repeat(3, 1))).loss.detach().reshape(())
        require(not subject.about(twice, once), f"loss {float(once):.5g}, of the batch three times {float(twice):.5g}")
        require(math.isfinite(float(once)), f"the loss is {float(once)}")


@QUANTIZER.check(
    rule="every stage and group uses several of its entries, and no training forward leaves all of them out",
    cause="a later stage that starts from the very vectors that the stage before it has made zero; or a dropout of "
    "stages that may drop the first one too",
    applies=lambda subject: len(subject.traits.index_shape) > 0,
)
def check_every_stage_is_used(quantizer: QuantizerSubject) -> None:
    """Guards residual and grouped quantizers against stages that say nothing.

    Fails it::

        for stage in stages:
            stage.start_from(residual[:size])  # the same rows each time: they are zero after the first stage
    """
    module = quantizer.started(training=False)
    indices = quantizer.flat(quantizer.call(module, quantizer.input(200)).indices)
    indices = indices.reshape(len(indices), -1)
    for stage in range(indices.shape[1]):
        used = len(torch.unique(indices[:, stage]))
        require(used > 1, f"stage {stage + 1} of {indices.shape[1]} gives one index to {len(indices)} vectors")
    module = quantizer.started()
    for _ in range(40 if quantizer.traits.stochastic else 1):
        indices = quantizer.flat(quantizer.call(module, quantizer.input(quantizer.some)).indices)
        empty = int((indices < 0).flatten(1).all(dim=1).sum())
        require(empty == 0, f"in training, {empty} of {len(indices)} vectors have no index of any stage")
