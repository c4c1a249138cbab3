"""Checks of a quantizer: layouts, dtypes, and what is refused at the door."""

from typing import Any

import torch
from torch import Tensor

from ._compare import differ, gap
from ._engine import BASIC
from ._quantizer_subject import QUANTIZER, QuantizerSubject, has_codebook, has_encode
from ._report import require

_SPACES: dict[int, list[tuple[int, ...]]] = {0: [()], 1: [(6,), (1,)], 2: [(5, 3), (1, 6), (1, 1)], 3: [(2, 5, 3)]}


def _layouts(subject: QuantizerSubject) -> list[tuple[int, ...]]:
    return [space for rank in subject.traits.space for space in _SPACES.get(rank, [(2,) * rank])]


@QUANTIZER.check(
    rule="quantized has the input's shape and dtype, indices are integers of the input's shape without channels, "
    "the loss is one finite number; in training as in evaluation",
    cause="indices left flat, as the search returns them, or a result that depends on the mode",
    rank=BASIC,
)
def check_shapes(subject: QuantizerSubject) -> None:
    """Guards the shape and dtype of each result, in every layout and mode.

    Fails it::

        return quantized, indices.flatten(), loss  # (B * H * W,) instead of (B, H, W)
    """
    traits = subject.traits
    for training in (True, False):
        module = subject.started(training=training)
        for space in _layouts(subject):
            z = subject.to_layout(torch.randn(3, *space, traits.dim))
            result = subject.call_copy(module, z)
            where = f"for input {tuple(z.shape)}, {'training' if training else 'evaluation'}"
            expected = list(z.shape)
            expected[traits.channel_dim] = subject.dim_out
            shape = tuple(result.quantized.shape)
            require(shape == tuple(expected), f"quantized has shape {shape} {where}")
            require(result.quantized.dtype == z.dtype, f"quantized is {result.quantized.dtype} {where}")
            as_input = result.quantized.is_contiguous() or not (traits.strict and z.is_contiguous())
            require(as_input, f"quantized is a permuted view, strides {result.quantized.stride()}, {where}")
            shape = tuple(result.indices.shape)
            require(shape == (3, *space, *traits.index_shape), f"indices have shape {shape} {where}")
            _check_dtypes(result.indices, result.loss, where, strict=traits.strict)


def _check_dtypes(indices: Tensor, loss: Tensor, where: str, *, strict: bool) -> None:
    integer = not (indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool)
    require(indices.dtype == torch.int64 if strict else integer, f"indices are {indices.dtype} {where}")
    require(loss.numel() == 1 and bool(loss.isfinite().all()), f"the loss is {loss.tolist()} {where}")
    require(not strict or loss.shape == (), f"the loss has shape {tuple(loss.shape)} {where}")
    require(loss.is_floating_point(), f"the loss is {loss.dtype} {where}")


@QUANTIZER.check(
    rule="indices are in [0, codebook_size); -1 is for stages that a random training forward leaves out",
    cause="an offset between stages or groups, or -1 for vectors that were not assigned",
    applies=lambda subject: subject.traits.codebook_size is not None,
    needs="codebook_size=",
    rank=BASIC,
)
def check_index_range(subject: QuantizerSubject) -> None:
    """Guards the range of indices, for inputs near, far and at zero.

    Fails it::

        indices = distances.argmin(dim=1) + 1
    """
    size = subject.traits.codebook_size
    for training in (True, False):
        module = subject.started(training=training)
        for scale in (1.0, 0.0, 1e3, 1e-3):
            indices = subject.call_copy(module, subject.input(64) * scale).indices
            low, high = int(indices.min()), int(indices.max())
            require(
                low >= subject.least_index(training=training) and high < (size or 0),
                f"indices from {low} to {high}, but codebook_size is {size}",
            )


@QUANTIZER.check(
    rule="every layout gives what its vectors give one by one",
    cause="view() where movedim() is needed: channels of different positions are mixed without an error",
    rank=BASIC,
)
def check_layouts(subject: QuantizerSubject) -> None:
    """Guards that only the channels of one position make a vector, wherever they are and whatever the strides.

    Fails it::

        flat = z.view(-1, dim)  # of (B, C, H, W): must be z.movedim(1, -1).reshape(-1, dim)
    """
    for training in subject.modes:
        module = subject.started(training=training)
        for space in _layouts(subject):
            z = subject.to_layout(torch.randn(3, *space, subject.traits.dim))
            _compare_with_vectors(subject, module, z, f"input {tuple(z.shape)}")


@QUANTIZER.check(
    rule="memory format and strides of the input do not matter; where strict, channels-last comes out as it goes in",
    cause="view() of an input that is not contiguous, or strides taken for an order",
)
def check_strides(subject: QuantizerSubject) -> None:
    """Guards inputs that are channels-last in memory, sliced, expanded, or transposed.

    Fails it::

        flat = z.view(z.shape[0], dim, -1)  # raises for a transposed input
    """
    space = (4, 6) if 2 in subject.traits.space else _SPACES[max(subject.traits.space)][0]
    for training in subject.modes:
        module = subject.started(training=training)
        whole = subject.to_layout(torch.randn(4, *space, subject.traits.dim))
        wide = torch.randn(8, *whole.shape[1:-1], 2 * whole.shape[-1]) if whole.ndim > 2 else None
        inputs = {"expanded": whole[:1].expand_as(whole), "transposed": _transposed(whole)}
        if whole.ndim == 4:
            inputs["channels-last"] = whole.to(memory_format=torch.channels_last)
        if wide is not None and wide[::2, ..., ::2].shape == whole.shape and subject.traits.channel_dim == 1:
            inputs["sliced"] = wide[::2, ..., ::2]
        for name, z in inputs.items():
            where = f"{name} input {tuple(z.shape)}, strides {z.stride()}"
            quantized = _compare_with_vectors(subject, module, z, where)
            if name == "channels-last" and subject.traits.strict and subject.traits.channel_dim == 1:
                kept = quantized.is_contiguous(memory_format=torch.channels_last)
                require(kept, f"{where}: quantized has strides {quantized.stride()}")


def _transposed(z: Tensor) -> Tensor:
    """The same values with the strides of the reversed shape."""
    order = list(range(z.ndim))[::-1]
    return z.permute(order).contiguous().permute(order)


def _compare_with_vectors(subject: QuantizerSubject, module: Any, z: Tensor, name: str) -> Tensor:
    result = subject.call_copy(module, z)
    expected = subject.call_copy(module, subject.from_vectors(subject.vectors(z)))
    text = gap(subject.flat(result.indices), subject.flat(expected.indices))
    require(not text, f"{name}: {text} in the indices")
    text = subject.differ(subject.vectors(result.quantized), subject.vectors(expected.quantized))
    require(not text, f"{name}: {text} in quantized")
    if subject.traits.batched_loss:
        text = subject.about(result.loss.reshape(()), expected.loss.reshape(()))
        require(not text, f"{name}: {text} in the loss")
    return result.quantized


def _many(subject: QuantizerSubject) -> int:
    """Vectors of which some lie so near to two entries that half precision confuses them; strict is told by values."""
    return 256 if subject.traits.strict else 2048


@QUANTIZER.check(
    rule="half-precision inputs get the indices of the same values in float32, and quantized in their own dtype or, "
    "unless strict, in float32",
    cause="distances, or the rounding, computed in the input's dtype: 8 or 11 bits cannot tell entries apart",
    applies=lambda subject: subject.traits.half,
)
def check_half_precision(subject: QuantizerSubject) -> None:
    """Guards the search against the input's precision.

    Fails it::

        distances = torch.cdist(z, codebook.to(z.dtype))
    """
    dtypes = (torch.bfloat16, torch.float16) + ((torch.float64,) if subject.traits.strict else ())
    for training in subject.modes:
        module = subject.started(training=training)
        for dtype in dtypes:
            z = subject.input(_many(subject)).to(dtype)
            try:
                result = subject.call_copy(module, z)
            except (RuntimeError, TypeError):
                if subject.traits.strict:
                    raise
                continue  # refused, as a float32 layer of torch does
            expected = subject.call_copy(module, z.float())
            wide = torch.promote_types(dtype, torch.float32)
            taken = (dtype,) if subject.traits.strict else (dtype, wide)
            require(result.quantized.dtype in taken, f"quantized is {result.quantized.dtype} for {dtype}")
            require(not subject.traits.strict or result.loss.dtype == wide, f"loss is {result.loss.dtype} for {dtype}")
            if dtype == torch.float64:  # has digits that float32 lacks, which may decide between two entries
                _require_all_digits(subject, module)
                continue
            text = gap(subject.flat(result.indices), subject.flat(expected.indices))
            require(not text, f"{dtype}: {text} in the indices")
            rounding = 0.0 if subject.traits.strict else 4 * torch.finfo(dtype).eps
            text = differ(result.quantized.to(dtype), expected.quantized.to(dtype), rtol=rounding, atol=rounding)
            require(not text, f"{dtype}: {text} in quantized")


def _require_all_digits(subject: QuantizerSubject, module: Any) -> None:
    """Vectors between the two nearest entries, by a billionth nearer to the one or the other."""
    if not has_codebook(subject) or subject.traits.distance != "euclidean" or subject.traits.stochastic:
        return
    entries = subject.codebook(module).double()
    if len(entries) > 1000:  # too many pairs
        return
    apart = torch.cdist(entries, entries).fill_diagonal_(torch.inf)
    if float(apart.min()) < 0.01:  # too little even for double precision
        return
    pair = torch.tensor(divmod(int(apart.argmin()), len(entries)))
    towards = entries[pair] - entries[pair.flip(0)]
    z = subject.from_vectors(entries[pair].mean(dim=0) + 1e-9 * towards)
    tokens = [subject.call_copy(module, z).indices]
    if has_encode(subject):
        tokens.append(subject.encode(module, z))
    for found in map(subject.flat, tokens):
        require(torch.equal(found, pair), f"float64: entries {found.tolist()}, but {pair.tolist()} are the nearest")


@QUANTIZER.check(
    rule="autocast does not change indices, nor what they stand for",
    cause="a matrix product in the search, which autocast runs in half precision",
    applies=lambda subject: subject.traits.half,
)
def check_autocast(subject: QuantizerSubject) -> None:
    """Guards the search against mixed precision: under autocast, the indices are those of float32.

    Fails it::

        distances = z2 - 2 * z @ codebook.t() + e2  # without torch.autocast(..., enabled=False) around it
    """
    encodes = subject.traits.strict and has_encode(subject)
    for training in subject.modes:
        module = subject.started(training=training)
        for dtype in (torch.bfloat16, torch.float16):
            # An offset of the kind that an encoder has: it costs half types most of their digits.
            z = subject.input(_many(subject)) + (0.0 if training else 1.0)
            expected = subject.call_copy(module, z)
            with torch.autocast("cpu", dtype=dtype):
                result = subject.call_copy(module, z)
                tokens = subject.encode(module, z) if encodes else result.indices
            text = gap(subject.flat(result.indices), subject.flat(expected.indices))
            require(not text, f"autocast to {dtype}: {text} in the indices")
            if subject.traits.strict:
                text = subject.results_differ(result, expected)
                require(not text, f"autocast to {dtype}: {text}")
            if encodes:
                text = gap(tokens, subject.encode(module, z))
                require(not text, f"autocast to {dtype}: {text} in the indices of encode")
                with torch.autocast("cpu", dtype=dtype):
                    decoded = subject.decode(module, tokens, z)
                text = gap(decoded, subject.decode(module, tokens, z))
                require(not text, f"autocast to {dtype}: {text} in what decode returns")
