"""Checks of a quantizer in the company of compilers, checkpointing, several processes, and little memory."""

import contextlib
import io
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._compare import backward, clone, drawn, floating_state, state_difference, state_of
from ._engine import LONG
from ._memory import kept_by_autograd, largest_allocation
from ._processes import can_run_two, in_two_processes
from ._quantizer_gradients import trained_parameters
from ._quantizer_subject import QUANTIZER, QuantizerSubject, has_codebook
from ._report import require


@QUANTIZER.check(
    rule="activation checkpointing changes neither gradients nor statistics",
    cause="statistics in forward, which checkpointing runs twice",
    applies=lambda subject: not subject.traits.stochastic,
)
def check_checkpointing(subject: QuantizerSubject) -> None:
    """Guards trainings that save memory: each batch counts once.

    Fails it::

        self.cluster_size.lerp_(counts, 0.01)  # in forward
    """
    start, z = subject.started(), subject.input(48)
    modules, grads = (subject.copy(start), subject.copy(start)), []
    for module, use in zip(modules, (False, True), strict=True):
        for factor in (1.0, 1.5):
            leaf = (z * factor).requires_grad_()

            def run(inputs: Tensor, module: Any = module) -> tuple[Tensor, Tensor]:
                result = subject.call(module, inputs)
                return result.quantized, result.loss.reshape(())

            quantized, loss = checkpoint(run, leaf, use_reentrant=False) if use else run(leaf)
            total = quantized.square().mean() + loss
            if total.requires_grad:
                backward(total)
        subject.update(module)
        grads.append(torch.zeros_like(z) if leaf.grad is None else leaf.grad)
    text = subject.about(grads[1], grads[0])
    require(not text, f"gradient at the input: {text}")
    text = subject.states_differ(modules[1], modules[0])
    require(not text, f"state: {text}")


@QUANTIZER.check(
    rule="it compiles into one graph, in training and in evaluation, and gives the eager results",
    cause="a branch on a value of a tensor, .item(), or a library call that the compiler cannot follow",
    rank=LONG,
)
def check_compile(subject: QuantizerSubject) -> None:
    """Guards torch.compile(fullgraph=True), with a backend that needs no compiler.

    Fails it::

        if self.initted:  # a tensor: the graph breaks here
    """
    for training in subject.modes:
        torch.compiler.reset()
        module = subject.started(training=training)
        eager = subject.copy(module)
        # Not plain aot_eager: its partitioner imports the compiler's back end, for a backward that is not run here.
        compiled = torch.compile(
            lambda z, module=module: tuple(subject.call(module, z)[:3]),
            backend="aot_eager_default_partitioner",
            fullgraph=True,
        )
        for _ in range(2):
            z = subject.input(24)
            quantized, indices, loss = compiled(z)
            expected = subject.call(eager, z)
            text = subject.results_differ(expected._replace(quantized=quantized, indices=indices, loss=loss), expected)
            require(not text, f"{'training' if training else 'evaluation'}: {text}")
        text = subject.states_differ(module, eager)
        require(not text, f"{'training' if training else 'evaluation'}, state: {text}")
    torch.compiler.reset()


class _Call(torch.nn.Module):
    def __init__(self, subject: QuantizerSubject, module: Any) -> None:
        super().__init__()
        self.module = module
        self.subject = (subject,)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, indices, loss, _ = self.subject[0].call(self.module, z)
        return quantized, indices, loss


@QUANTIZER.check(
    rule="it can be exported in evaluation",
    cause="a branch on a value of a tensor, as for compile",
    rank=LONG,
)
def check_export(subject: QuantizerSubject) -> None:
    """Guards deployment: torch.export of the evaluation gives the same tokens.

    Fails it::

        assert indices.max() < self.codebook_size
    """
    module, z = subject.started(training=False), subject.input(24)
    with contextlib.redirect_stderr(io.StringIO()):  # where a graph that breaks is printed
        program = torch.export.export(_Call(subject, module), (z,))
    quantized, indices, loss = program.module()(z)
    expected = subject.call(module, z)
    text = subject.results_differ(expected._replace(quantized=quantized, indices=indices, loss=loss), expected)
    require(not text, text)
    torch.compiler.reset()


def _is_large(subject: QuantizerSubject) -> bool:
    size = subject.traits.codebook_size or 0
    return size >= 512 and size >= 32 * subject.traits.dim and subject.traits.index_shape == ()


@QUANTIZER.check(
    rule="a training step keeps no N x K matrix for its backward",
    cause="a one-hot matrix or distances in the graph: gigabytes at 16384 entries",
    applies=_is_large,
)
def check_memory(subject: QuantizerSubject) -> None:
    """Guards memory with a large codebook: what is kept after the forward; if strict, also what is made in between.

    Fails it::

        quantized = one_hot(indices, size).float() @ codebook
    """
    module, size = subject.started(), subject.traits.codebook_size or 1
    count = max(2048, 2**22 // size)
    z = subject.input(count).requires_grad_()
    count = len(subject.vectors(z))
    with kept_by_autograd() as kept:
        result = subject.call(module, z)
        largest = max((each.numel for each in kept if each.alive), default=0)
        del result  # which the graph hung on until here
    require(
        largest < count * size // 2, f"a tensor of {largest} numbers is kept for {count} vectors and {size} entries"
    )
    if subject.traits.strict:
        most = largest_allocation(partial(subject.call, module, z.detach()))
        require(most < count * size, f"{most} bytes are allocated at once for {count} vectors and {size} entries")


@QUANTIZER.check(
    rule="two processes with half a batch each have the statistics of one with the whole batch, and equal ones",
    cause="averages, a start or revivals of each process's own vectors",
    applies=lambda subject: can_run_two() and not subject.traits.stochastic and _has_state(subject),
)
def check_two_processes(subject: QuantizerSubject) -> None:
    """Guards data-parallel training, from the start on, with statistics applied after each step.

    Fails it::

        self.embed_sum.lerp_(one_hot.T @ z, 0.01)  # without all_reduce
    """
    starts = {"fresh": subject.fresh(), "started": subject.started()}
    batches = [subject.input(96) for _ in range(3)]
    uneven = [(z, torch.rand(subject.positions(z)) > 0.3) for z in batches]
    uneven[1][1][: len(batches[1]) // 4] = False  # the first process has no live position here

    def run(rank: int, world: int) -> dict[str, dict[str, Tensor]]:
        states = {}
        for name, start in starts.items():
            module = subject.copy(start)
            subject.update(module)
            for z in batches:
                subject.call(module, z.chunk(world)[rank])
                subject.update(module)
            states[name] = _what_counts(subject, module, batches[0])
            if subject.traits.strict and subject.traits.mask:
                states[f"{name}, uneven and masked"] = _run_uneven(subject, clone(start), uneven, rank, world)
        return states

    expected = run(0, 1)
    first, second = in_two_processes(lambda rank: run(rank, 2))
    for name, joined in expected.items():
        one, other = first[name], second[name]
        text = state_difference(other, one, rtol=1e-5, atol=1e-6)
        require(not text, f"{name}, the second process compared with the first: {text}")
        text = state_difference(one, joined, rtol=1e-3, atol=1e-4)
        require(not text, f"{name}, two processes compared with one: {text}")


def _what_counts(subject: QuantizerSubject, module: Any, z: Tensor) -> dict[str, Tensor]:
    """The floating-point state if strict, else what it leads to: a buffer that is only logged may be each process's."""
    if subject.traits.strict:
        return floating_state(module)
    entries = {"codebook": subject.codebook(module)} if has_codebook(subject) else {}
    return {**entries, "quantized in evaluation": subject.call(module.eval(), z).quantized.detach()}


def _run_uneven(
    subject: QuantizerSubject, module: Any, batches: list[tuple[Tensor, Tensor]], rank: int, world: int
) -> dict[str, Tensor]:
    """The state, integers included, after two forwards for each update, and one that waits for its update."""
    subject.update(module)
    cut = [len(batches[0][0]) // 4] if world == 2 else []
    for z, mask in batches:
        for factor in (1.0, 2.0):
            subject.call(module, (factor * z).tensor_split(cut)[rank], mask.tensor_split(cut)[rank])
        subject.update(module)
    subject.call(module, batches[0][0].tensor_split(cut)[rank])
    return state_of(module)


def _has_state(subject: QuantizerSubject) -> bool:
    """Whether a training forward changes anything: what is not learned by gradient alone."""
    module = subject.fresh()
    before = state_of(module)
    with drawn(0):
        subject.call(module, subject.input(96))
    return bool(state_difference(state_of(module), before))


def _can_learn(subject: QuantizerSubject) -> bool:
    return bool(trained_parameters(subject.fresh())) or _has_state(subject)


@QUANTIZER.check(
    rule="training on a toy distribution brings the error down, and uses no fewer entries than before",
    cause="a codebook that starts where no vector is, averages whose sizes start at 0 beside sums that do not, a "
    "gradient of the wrong sign, or a stage that takes the input again instead of the rest. Declare distance='cosine' "
    "of directions, learns=False of what only a decoder trains",
    applies=lambda subject: subject.traits.learns and _can_learn(subject),
)
def check_training(subject: QuantizerSubject) -> None:
    """Guards the whole: clusters of vectors are learned by codebook and optimizer, with the encoder held fixed.

    Fails it::

        nn.init.uniform_(codebook, -1 / size, 1 / size)  # one entry takes all vectors, and the others are never used
    """
    module = subject.fresh()
    size = subject.traits.codebook_size or 16
    clusters = min(size, 32)
    centers = 2.0 * torch.randn(clusters, subject.traits.dim) + 1.0
    parameters = trained_parameters(module)
    optimizer = torch.optim.Adam(parameters, lr=0.03) if parameters else None
    errors, usages = [], []
    for _ in range(200):
        vectors = centers[torch.randint(clusters, (128,))] + 0.05 * torch.randn(128, subject.traits.dim)
        if subject.traits.distance == "cosine":
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        result = subject.call(module, subject.from_vectors(vectors))
        if optimizer is not None and result.loss.requires_grad:
            optimizer.zero_grad()
            backward(result.loss.sum())
            optimizer.step()
        subject.update(module)
        errors.append(float((subject.vectors(result.quantized).detach() - vectors).square().mean()))
        usages.append(len(torch.unique(result.indices)))
    spread = float(centers.var(dim=0).mean())
    first, last = errors[0] / spread, sum(errors[-10:]) / 10 / spread
    used = sum(usages[-10:]) / 10
    numbers = f"error {first:.3g} -> {last:.3g} of the variance, indices in use {usages[0]} -> {used:.3g}"
    numbers += f", {clusters} clusters"
    require(last < max(0.3, 0.7 * first), numbers)
    require(used >= 0.9 * min(usages[0], 0.5 * clusters) - 1.5, numbers)  # a few more or less is chance
