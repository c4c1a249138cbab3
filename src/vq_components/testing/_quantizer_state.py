"""Checks of a quantizer: what it keeps, when that changes, and how it is copied."""

import contextlib
import copy
import io
import pickle
from typing import Any

import torch
from torch import nn

from ._compare import gap, importable, state_difference, state_of
from ._quantizer_subject import QUANTIZER, QuantizerSubject, has_codebook, has_encode, has_revival, has_setter
from ._report import require


@QUANTIZER.check(
    rule="an evaluation changes nothing, at any stage of life",
    cause="statistics or a start from data that are not guarded by self.training",
)
def check_eval_changes_nothing(subject: QuantizerSubject) -> None:
    """Guards the codebook against validation data, before training has begun too.

    Fails it::

        if not self.initted:  # and self.training is forgotten
            self.codebook.copy_(kmeans(z))
    """
    for stage, module in subject.at_stages().items():
        module.eval()
        before = state_of(module)
        for scale in (1.0, 100.0):
            subject.call(module, subject.input(64) * scale)
            subject.call(module, subject.input(64) * scale)
        text = state_difference(state_of(module), before)
        require(not text, f"{stage}: {text}")


@QUANTIZER.check(
    rule="encode and decode change nothing in training mode either",
    cause="encode calls forward, which counts",
    applies=has_encode,
)
def check_encode_changes_nothing(subject: QuantizerSubject) -> None:
    """Guards the codebook against looking at tokens in the middle of a training.

    Fails it::

        def encode(self, z):
            return self(z).indices
    """
    for stage, module in subject.at_stages().items():
        before = state_of(module)
        z = subject.input(64)
        subject.decode(module, subject.encode(module, z), z)
        text = state_difference(state_of(module), before)
        require(not text, f"{stage}: {text}")
        require(module.training, f"{stage}: the module was left in evaluation mode")


@QUANTIZER.check(
    rule="a forward prints nothing, sets no attributes and draws no random numbers unless it is declared stochastic",
    cause="a cache, a counter or a debugging print left in forward",
    applies=lambda subject: subject.traits.strict,
)
def check_no_side_effects(subject: QuantizerSubject) -> None:
    """Guards compilers, loggers and the reproducibility of the rest of a training.

    Fails it::

        self.last_indices = indices
    """
    for training in (True, False):
        module, z = subject.started(training=training), subject.input(32)
        before, printed = _attributes(module), io.StringIO()
        random = torch.get_rng_state()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            subject.call(module, z)
        random_used = not torch.equal(torch.get_rng_state(), random)
        require(not printed.getvalue(), f"printed {printed.getvalue()[:80]!r}")
        require(subject.traits.stochastic or not random_used, "the global random state moved")
        changed = [name for name, value in _attributes(module).items() if before.get(name) != value]
        require(not changed, f"attributes that changed: {', '.join(changed)}")


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Plain attributes of all modules, and the identity of tensors and modules."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if name in ("_parameters", "_buffers", "_modules"):
                found |= {f"{path}.{name}.{key}": id(item) for key, item in value.items()}
            elif isinstance(value, (int, float, str, bool, tuple, type(None))):
                found[f"{path}.{name}"] = value
            else:
                found[f"{path}.{name}"] = id(value)
    return found


@QUANTIZER.check(
    rule="a state_dict loads strictly at every stage of life, and the copy goes on as the original",
    cause="buffers that are registered or resized in forward, or state that is no buffer",
)
def check_state_dict(subject: QuantizerSubject) -> None:
    """Guards resumed runs: the same outputs and the same state, now and after further training forwards.

    Fails it::

        self.step = 0  # a plain attribute: a resumed run starts from 0 again
    """
    for stage, module in subject.at_stages().items():
        buffer = io.BytesIO()
        torch.save(module.state_dict(), buffer)
        buffer.seek(0)
        other = subject.fresh()
        subject.call(other, subject.input(24) + 1.0)  # a past of its own, which must not remain
        other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
        _check_twins(subject, module, other, f"{stage}, loaded")


@QUANTIZER.check(
    rule="a file with the entries alone is a codebook that has started: it goes on as after set_codebook_",
    cause="a flag that the file lacks, so that the next training batch overwrites what was loaded",
    applies=lambda subject: subject.traits.strict and has_setter(subject) and has_revival(subject),
)
def check_codebook_file(subject: QuantizerSubject) -> None:
    """Guards codebooks of other code, whose files know nothing of starts and statistics.

    Fails it::

        self.register_buffer("started", torch.tensor(False))  # stays False
    """
    trained = subject.started()
    entries = subject.codebook(trained).clone()
    state = trained.state_dict()
    length = 5.0 if subject.traits.distance == "cosine" else 1.0  # a length that means nothing
    only = {name: length * tensor for name, tensor in state.items() if name.endswith("weight")}
    for stage, loaded in subject.at_stages().items():
        loaded.load_state_dict(dict(only), strict=True)
        expected = subject.fresh()
        expected.set_codebook_(entries)
        for module in (loaded, expected):
            module.update_()
        for step in range(8):
            z = 0.1 * subject.input(40) + 3.0 if step else subject.input(64)  # which leaves entries without vectors
            result, other = subject.call(loaded, z), subject.call(expected, z)
            text = gap(result.indices, other.indices) or subject.about(result.quantized, other.quantized)
            require(not text, f"loaded over one {stage}, step {step}: {text}")
            for module in (loaded, expected):
                module.update_()
            text = subject.about(subject.codebook(loaded), subject.codebook(expected))
            require(not text, f"loaded over one {stage}, entries after update {step}: {text}")
    averages = [name for name in state if name.endswith(("cluster_size", "embed_avg"))]
    if averages:
        loaded = subject.fresh()
        loaded.revival = None
        loaded.load_state_dict({**only, **{name: 7.0 * torch.ones_like(state[name]) for name in averages}})
        subject.call(loaded, subject.from_vectors(entries))
        loaded.update_()
        text = subject.about(subject.codebook(loaded), entries)
        require(not text, f"with averages that do not fit the entries, after an update with the entries: {text}")


@QUANTIZER.check(
    rule="a deep copy and a pickle go on as the original, and share nothing with it",
    cause="a buffer that is not a leaf, a lambda or a hook that holds the original, or a shared tensor",
)
def check_copies(subject: QuantizerSubject) -> None:
    """Guards averaged weights, sweeps, and multiprocessing.

    Fails it::

        self.search = lambda z: nearest(z, self.codebook)  # a copy still searches the original's codebook
    """
    for stage, module in subject.at_stages().items():
        _check_twins(subject, copy.deepcopy(module), copy.deepcopy(module), f"{stage}, deepcopy of itself")
        twin, before = copy.deepcopy(module), state_of(module)
        for _ in range(2):
            subject.call(twin, subject.input(64) * 5.0)
            subject.update(twin)
        text = state_difference(state_of(module), before)
        require(not text, f"{stage}, training a copy changed the original: {text}")
        if all(importable(type(part)) for part in module.modules()):
            _check_twins(subject, copy.deepcopy(module), pickle.loads(pickle.dumps(module)), f"{stage}, pickle")


def _seed(module: Any, seed: int) -> None:
    """The global random state, and generators of the module's own, which no state_dict holds either."""
    torch.manual_seed(seed)
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, torch.Generator):
                value.manual_seed(seed)


def _check_twins(subject: QuantizerSubject, module: Any, other: Any, name: str) -> None:
    """Raises unless two modules are alike, now and later."""
    text = state_difference(state_of(other), state_of(module))
    require(not text, f"{name}: {text}")
    for step in range(3):
        z = subject.input(48)
        for training in (True, False):
            module.train(training)
            other.train(training)
            results = []
            for each in (module, other):
                _seed(each, step)
                results.append(subject.call(each, z))
            text = subject.results_differ(results[1], results[0])
            require(not text, f"{name}, step {step}: {text}")
        text = subject.states_differ(other, module)
        require(not text, f"{name}, after step {step}: {text}")


@QUANTIZER.check(
    rule="the codebook keeps its float32 under .half() and .bfloat16(), and the module works there",
    cause="averages in half precision, which stop at 2^-8 of their value; a file in half precision brings them too",
    applies=lambda subject: subject.traits.strict and has_revival(subject),
)
def check_half_module(subject: QuantizerSubject) -> None:
    """Guards the codebook inside a model that is converted to half precision.

    Fails it::

        self.register_buffer("cluster_size", torch.ones(size))  # becomes float16 with the model
    """
    for dtype in (torch.float16, torch.bfloat16):
        module = subject.started()
        before = state_of(module)
        module.to(dtype)
        text = state_difference(state_of(module), before)
        require(not text, f"after .to({dtype}): {text}")
        result = subject.call(module, subject.input(16).to(dtype))
        require(result.quantized.dtype == dtype, f"quantized is {result.quantized.dtype} for {dtype}")
        halved = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in before.items()}
        other = subject.fresh()
        other.load_state_dict(halved, assign=True)
        narrow = [name for name, tensor in state_of(other).items() if tensor.dtype == dtype]
        require(not narrow, f"after a file in {dtype} was loaded with assign=True: {', '.join(narrow)}")
        subject.call(other, subject.input(16))
        subject.update(other)
        left = [
            name for name, tensor in module.to(device="meta", dtype=dtype).state_dict().items() if not tensor.is_meta
        ]
        require(not left, f"after .to(device, {dtype}) on the old device: {', '.join(left)}")


@QUANTIZER.check(
    rule="micro-batches count as one batch",
    cause="a moving average that is updated in every forward: n micro-batches are n decays; or a loss that is a sum",
    applies=lambda subject: not subject.traits.stochastic,
)
def check_micro_batches(subject: QuantizerSubject) -> None:
    """Guards gradient accumulation: the state after four quarters and an update is that after the whole batch.

    Fails it::

        self.cluster_size.lerp_(counts, 0.01)  # in forward
    """
    start = subject.started()
    z = subject.to_layout(torch.randn(32, *subject.space, subject.traits.dim))  # four equal parts
    whole, parts = subject.copy(start), subject.copy(start)
    total = subject.call(whole, z).loss.reshape(())
    losses = [subject.call(parts, part).loss.reshape(()) for part in z.chunk(4)]
    for module in (whole, parts):
        subject.update(module)
    if has_codebook(subject):
        text = subject.about(subject.codebook(parts), subject.codebook(whole))
        require(not text, f"the codebook after four quarters and after the whole batch: {text}")
    if subject.traits.two_phase:
        text = subject.states_differ(parts, whole)
        require(not text, f"after four quarters and after the whole batch: {text}")
    if subject.traits.batched_loss:
        text = subject.about(torch.stack(losses).mean(), total)
        require(not text, f"mean loss of four quarters and loss of the whole: {text}")
