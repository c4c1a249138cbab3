"""The two phases: a training forward counts, an update applies, and who says when."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vq_components import EMAVectorQuantizer, VectorQuantizer

MODES = ["lazy", "manual", "hooked"]


def updates(quantizer):
    return int(quantizer.embedding.updates)


def optimizer_of(quantizer, lr=0.0):
    """An optimizer of the quantizer's parameters, and of one more, since averages have none."""
    return torch.optim.SGD([*quantizer.parameters(), nn.Parameter(torch.zeros(()))], lr=lr)


def test_without_a_word_every_forward_applies_what_the_one_before_counted(build):
    quantizer = build()
    for step in range(4):
        assert updates(quantizer) == max(step - 1, 0)
        expected = copy.deepcopy(quantizer)
        expected._update()
        z = torch.randn(40, 4)
        indices = expected.encode(z)
        out = quantizer(z)
        if step > 0:  # the first forward starts the codebook
            assert torch.equal(quantizer.codebook, expected.codebook)
            assert torch.equal(out.indices, indices)
    quantizer.eval()(torch.randn(40, 4))
    assert updates(quantizer) == 3


@pytest.mark.parametrize("mode", ["manual", "hooked"])
def test_a_forward_never_changes_the_codebook_that_it_used(build_started, mode):
    """Defect 15."""
    quantizer = build_started()
    optimizer = optimizer_of(quantizer)
    if mode == "manual":
        quantizer.update_()
    else:
        quantizer.update_after(optimizer)
        optimizer.step()
    for _ in range(3):
        kept, count = quantizer.codebook.detach().clone(), updates(quantizer)
        for _ in range(3):
            quantizer(torch.randn(40, 4))
        assert torch.equal(quantizer.codebook, kept)
        assert updates(quantizer) == count
        quantizer.update_() if mode == "manual" else optimizer.step()
        assert updates(quantizer) == count + 1


@pytest.mark.parametrize("mode", ["manual", "hooked"])
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_equal_the_batch(build_started, state_of, differing, mode, parts):
    """Defect 15: counts and candidates exactly, sums to rounding; the gradient step as well."""
    whole = build_started()
    whole.update_()
    split = copy.deepcopy(whole)
    optimizers = {id(module): optimizer_of(module, lr=1.0) for module in (whole, split)}
    if mode == "hooked":
        for module in (whole, split):
            module.load_state_dict(state_of(module) | {"embedding.update_is_manual": torch.tensor(False)})
            module.update_after(optimizers[id(module)])

    for _ in range(4):
        z = torch.randn(64, 4)
        for module, batches in ((whole, [z]), (split, z.chunk(parts))):
            for batch in batches:
                (module(batch.requires_grad_()).loss / len(batches)).backward()
            optimizers[id(module)].step()
            optimizers[id(module)].zero_grad()
            if mode == "manual":
                module.update_()
        sums = {f"embedding.{name}" for name in ("weight", "embed_avg", "usage", "cluster_size")}
        assert differing(whole, split) <= sums | {"embedding.candidates", "embedding.candidate_keys"}
        torch.testing.assert_close(state_of(split)["embedding.weight"], state_of(whole)["embedding.weight"])
        torch.testing.assert_close(split.embedding.usage, whole.embedding.usage)
    assert updates(whole) == updates(split)


def test_without_a_word_micro_batches_are_updates_of_their_own(build_started):
    """What the docs warn of: use one of the two other ways under accumulation."""
    quantizer = build_started()
    count = updates(quantizer)
    for part in torch.randn(64, 4).chunk(4):
        quantizer(part)
    assert updates(quantizer) == count + 4


@pytest.mark.parametrize("mode", MODES)
def test_an_update_with_nothing_pending_does_nothing(build, build_started, state_of, differing, mode):
    for make in (build, build_started):
        quantizer = make()
        quantizer._update()
        before = state_of(quantizer)
        if mode == "manual":
            quantizer.update_()
            quantizer.update_()
        elif mode == "hooked":
            optimizer = optimizer_of(quantizer)
            quantizer.update_after(optimizer)
            optimizer.step()
        else:
            quantizer(torch.randn(0, 4))
        assert not differing(quantizer, before, besides=["update_is_manual"])


def test_removing_the_handle_ends_it(build_started):
    quantizer = build_started()
    optimizer = optimizer_of(quantizer)
    first, second = quantizer.update_after(optimizer), quantizer.update_after(optimizer)
    quantizer(torch.randn(9, 4))
    count = updates(quantizer)
    optimizer.step()
    assert updates(quantizer) == count + 1  # two hooks, one update
    first.remove()
    first.remove()  # a second call does nothing
    quantizer(torch.randn(9, 4))
    quantizer(torch.randn(9, 4))
    assert updates(quantizer) == count + 1  # the second tie still holds
    optimizer.step()
    assert updates(quantizer) == count + 2
    second.remove()
    quantizer(torch.randn(9, 4))
    optimizer.step()
    assert updates(quantizer) == count + 2
    quantizer(torch.randn(9, 4))  # back to the default
    assert updates(quantizer) == count + 3


def test_an_optimizer_in_wrappers_is_found(build_started):
    """Accelerate's wrapper is an Optimizer of its own, whose hooks never run."""

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self):
            self.optimizer.step()

    quantizer = build_started()
    for optimizer in (Wrapper(optimizer_of(quantizer)), SimpleNamespace(optimizer=Wrapper(optimizer_of(quantizer)))):
        handle = quantizer.update_after(optimizer)
        quantizer(torch.randn(9, 4))
        count = updates(quantizer)
        getattr(optimizer, "optimizer", optimizer).step()
        assert updates(quantizer) == count + 1
        handle.remove()


@pytest.mark.parametrize("wrong", [None, nn.Linear(1, 1), SimpleNamespace(optimizer="sgd")])
def test_what_is_no_optimizer_is_refused(build_started, wrong):
    quantizer = build_started()
    with pytest.raises(TypeError) as error:
        quantizer.update_after(wrong)
    assert str(error.value) == (
        f"update_after hooks into a torch.optim.Optimizer, or a wrapper that holds one as .optimizer, "
        f"but got {type(wrong).__name__}. Call update_() after each step instead."
    )
    count = updates(quantizer)
    quantizer(torch.randn(9, 4))
    assert updates(quantizer) == count + 1  # it is tied to nothing


@pytest.mark.parametrize("way", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_untied(build_started, way):
    quantizer = build_started()
    optimizer = optimizer_of(quantizer)
    quantizer.update_after(optimizer)
    other = way(quantizer)
    count = updates(other)
    for module in (quantizer, other):
        module(torch.randn(9, 4))
    assert updates(quantizer) == count
    assert updates(other) == count + 1
    optimizer.step()
    assert updates(quantizer) == updates(other) == count + 1
    other.update_after(optimizer_of(other))
    other(torch.randn(9, 4))
    assert updates(other) == count + 1


def test_an_optimizer_with_a_hook_can_be_copied_and_saved(build_started):
    quantizer = build_started()
    optimizer = optimizer_of(quantizer)
    quantizer.update_after(optimizer)
    optimizer_of(quantizer).load_state_dict(optimizer.state_dict())
    pickle.loads(pickle.dumps(optimizer))


def test_a_step_that_the_scaler_skips_applies_nothing(build_started):
    quantizer = build_started()
    weight = nn.Parameter(torch.eye(4))
    optimizer = torch.optim.SGD([weight, *quantizer.parameters()], lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    quantizer.update_after(optimizer)
    optimizer.step()

    def step(z):
        optimizer.zero_grad()
        out = quantizer(z @ weight)
        scaler.scale(out.loss + out.quantized.square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()

    count, kept = updates(quantizer), quantizer.codebook.detach().clone()
    step(torch.full((9, 4), torch.nan))
    assert updates(quantizer) == count
    assert torch.equal(quantizer.codebook, kept)
    step(torch.randn(9, 4))
    assert updates(quantizer) == count + 1
    assert quantizer.codebook.isfinite().all()


class Run:
    """A training that accumulates gradients over three forwards."""

    def __init__(self, quantizer, mode):
        self.quantizer, self.mode = quantizer, mode
        self.optimizer = optimizer_of(quantizer, lr=0.5)
        if mode == "hooked":
            quantizer.update_after(self.optimizer)

    def step(self, number, z):
        torch.nan_to_num(self.quantizer(z.requires_grad_()).loss).backward()
        if number % 3 == 2:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=False)
            if self.mode == "manual":
                self.quantizer.update_()

    def resume_from(self, other):
        self.quantizer.load_state_dict(other.quantizer.state_dict(), strict=True)
        self.optimizer.load_state_dict(other.optimizer.state_dict())
        for parameter, its in zip(self.quantizer.parameters(), other.quantizer.parameters(), strict=True):
            parameter.grad = copy.deepcopy(its.grad)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stop", range(8))
def test_a_resumed_run_equals_an_uninterrupted_one(build, differing, mode, stop):
    """At any point: before the start, before and after it, in the middle of an accumulation window."""
    batches = [torch.full((40, 4), torch.nan), *torch.randn(10, 40, 4)]  # nothing starts from the first one
    run, resumed = Run(build(), mode), Run(build(), mode)
    for number in range(stop):
        run.step(number, batches[number])
    resumed.resume_from(run)
    for number in range(stop, len(batches)):
        run.step(number, batches[number])
        resumed.step(number, batches[number])
        assert not differing(run.quantizer, resumed.quantizer), number
    # The first call of update_() is what ends the default, under which the third forward has applied the second's.
    assert updates(run.quantizer) == {"lazy": 9, "manual": 4, "hooked": 3}[mode]


@pytest.mark.parametrize("build", [VectorQuantizer, EMAVectorQuantizer])
def test_codebooks_are_float32_whatever_the_default_and_the_file_are(build):
    vq = build(8, 4)
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in vq.state_dict().items()}
    vq.load_state_dict(half, assign=True)
    torch.set_default_dtype(torch.bfloat16)
    try:
        small = build(8, 4)
    finally:
        torch.set_default_dtype(torch.float32)
    for each in (vq, small):
        assert {value.dtype for value in each.state_dict().values() if value.is_floating_point()} == {torch.float32}
