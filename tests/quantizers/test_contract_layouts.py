"""The contract of every quantizer, part 1: layouts, dtypes and checks at the door."""

import copy

import pytest
import torch

B, C = 3, 4
LAYOUTS = [
    ((B, C), 1),
    ((B, C, 5), 1),
    ((B, C, 5, 6), 1),
    ((B, C, 2, 5, 6), 1),
    ((B, C), -1),
    ((B, 5, C), -1),
    ((B, 5, 6, C), -1),
    ((B, 5, 6, C), 3),
    ((B, 5, C, 6), -2),
    ((B, 1, C, 6), 2),
    ((1, C, 1, 1), 1),
]


def assert_equals_flat(quantizer, z, differing):
    """Compares with vectors ``(N, C)``, for an equal quantizer whose channels are in dimension 1."""
    channel_dim = quantizer.channel_dim
    flat = copy.deepcopy(quantizer)
    flat.channel_dim = 1
    moved = z.movedim(channel_dim, -1)
    expected = flat(moved.reshape(-1, C))

    out = quantizer(z)

    assert out.quantized.shape == z.shape
    assert out.indices.shape == moved.shape[:-1]
    assert torch.equal(out.quantized.movedim(channel_dim, -1).reshape(-1, C), expected.quantized)
    assert torch.equal(out.indices.flatten(), expected.indices)
    assert torch.equal(out.loss, expected.loss)
    assert out.terms == expected.terms
    assert not differing(quantizer, flat)
    assert torch.equal(quantizer.encode(z), out.indices)
    assert torch.equal(quantizer.decode(out.indices), out.quantized)
    return out


@pytest.mark.parametrize(("shape", "channel_dim"), LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
def test_every_layout_equals_the_permuted_vectors(build_started, differing, shape, channel_dim, training):
    quantizer = build_started(channel_dim=channel_dim).train(training)
    quantizer.update_()
    out = assert_equals_flat(quantizer, torch.randn(shape), differing)
    assert out.quantized.is_contiguous()


@pytest.mark.parametrize("training", [True, False])
def test_memory_format_does_not_matter(build_started, differing, training):
    quantizer = build_started().train(training)
    quantizer.update_()
    z = torch.randn(B, C, 5, 6)
    out = assert_equals_flat(quantizer, z.to(memory_format=torch.channels_last), differing)
    assert out.quantized.is_contiguous(memory_format=torch.channels_last)
    assert_equals_flat(quantizer, torch.randn(B, 2 * C, 10, 6)[:, ::2, ::2], differing)
    assert_equals_flat(quantizer, torch.randn(1, C, 5, 6).expand(B, -1, -1, -1), differing)
    assert_equals_flat(quantizer, torch.randn(6, 5, C, B).permute(3, 2, 1, 0), differing)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_every_dtype_is_computed_in_at_least_float32(build_started, differing, dtype, training):
    quantizer = build_started().train(training)
    quantizer.update_()
    wide = copy.deepcopy(quantizer)
    z = torch.randn(B, C, 5, 6).to(dtype).requires_grad_()
    same = z.detach().float().requires_grad_()

    out, expected = quantizer(z), wide(same)
    (out.loss + out.quantized.float().sum()).backward()
    (expected.loss + expected.quantized.sum()).backward()

    assert out.quantized.dtype == z.grad.dtype == dtype
    assert out.indices.dtype == torch.int64
    assert out.loss.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(out.indices, expected.indices)
    assert torch.equal(out.quantized, expected.quantized.to(dtype))
    assert torch.equal(out.quantized, quantizer.decode(out.indices).to(dtype))
    torch.testing.assert_close(out.loss.float(), expected.loss)
    torch.testing.assert_close(z.grad, same.grad.to(dtype))
    assert not differing(
        quantizer, wide, besides=["candidate_keys", "pending_distances"] if dtype == torch.float64 else []
    )
    assert quantizer.codebook.dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
def test_autocast_changes_nothing(build_started, differing, training):
    """Defect 16."""
    quantizer = build_started().train(training)
    quantizer.update_()
    other = copy.deepcopy(quantizer)
    z = torch.randn(B, C, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer(z)
        indices = quantizer.encode(z)
        decoded = quantizer.decode(indices)
    expected = other(z)
    for name in ("quantized", "indices", "loss"):
        assert torch.equal(getattr(out, name), getattr(expected, name)), name
    assert out.terms == expected.terms
    assert torch.equal(indices, expected.indices)
    assert torch.equal(decoded, expected.quantized)
    assert not differing(quantizer, other)


@pytest.mark.parametrize("shape", [(B, C + 1, 5, 6), (B, 2 * C, 5, 6), (B, C // 2, 5, 6), (B, 5, 6, C), (C,), ()])
@pytest.mark.parametrize("method", ["forward", "encode"])
def test_a_wrong_channel_count_raises(build, shape, method):
    """Defect 3: ``view(-1, D)`` takes all of these but the first and the last two."""
    quantizer = build()
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        getattr(quantizer, method)(torch.randn(shape))
    assert str(error.value) == (
        f"{type(quantizer).__name__} quantizes vectors of 4 channels along dimension 1, but got shape {shape}. "
        f"Build it for this number of channels, or pass channel_dim for another layout."
    )


@pytest.mark.parametrize(("channel_dim", "shape"), [(2, (B, C)), (-2, (C, 5)), (-3, (C, 2, 5)), (-5, (B, C, 5, 6))])
def test_channels_in_the_place_of_the_batch_raise(build, channel_dim, shape):
    quantizer = build(channel_dim=channel_dim)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        quantizer(torch.randn(shape))
    assert str(error.value) == (
        f"{type(quantizer).__name__} quantizes vectors of 4 channels along dimension {channel_dim}, "
        f"but got shape {shape}. Build it for this number of channels, or pass channel_dim for another layout."
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
@pytest.mark.parametrize("method", ["forward", "encode"])
def test_what_is_not_floating_point_raises(build, dtype, method):
    quantizer = build()
    with pytest.raises(TypeError) as error:
        getattr(quantizer, method)(torch.zeros(B, C, dtype=dtype))
    assert str(error.value) == (
        f"{type(quantizer).__name__} quantizes floating point vectors, but got {dtype}. Convert them with .float()."
    )


@pytest.mark.parametrize("method", ["forward", "encode"])
def test_a_mask_that_does_not_fit_raises(build, method):
    quantizer = build()
    name = type(quantizer).__name__
    z = torch.randn(B, C, 5, 6)
    with pytest.raises(TypeError) as error:
        getattr(quantizer, method)(z, torch.ones(B, 5, 6))
    assert str(error.value) == (
        f"{name} takes a bool mask, True where a position is live, but got torch.float32. "
        f"Convert numbers that are 1 there with .bool()."
    )
    for shape in [(B, C, 5, 6), (B, 5), (B, 6, 5), (1, 5, 6)]:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            getattr(quantizer, method)(z, torch.ones(shape, dtype=torch.bool))
        assert str(error.value) == (
            f"{name} takes a mask in the input's shape without channels, (3, 5, 6), but got {shape}. "
            f"Expand or squeeze it."
        )


def test_indices_that_cannot_be_decoded_raise(build):
    quantizer = build()
    name = type(quantizer).__name__
    for low, high in [(0, 16), (-2, 3)]:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            quantizer.decode(torch.tensor([[low, high]]))
        assert str(error.value) == (
            f"{name} takes indices in [0, 16), or -1 for masked positions, but got values from {low} to {high}. "
            f"Were they made with a larger codebook?"
        )
    with pytest.raises(TypeError) as error:
        quantizer.decode(torch.zeros(2, 3))
    assert str(error.value) == f"{name} takes integer indices, but got torch.float32. Convert them with .long()."
    with pytest.raises(ValueError) as error:  # noqa: PT011
        quantizer.decode(torch.tensor(3))
    assert str(error.value) == (
        f"{name} decodes indices of shape (B, *space), but got (). Pass them as encode returns them."
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_indices_of_any_integer_dtype_are_decoded(build_started, dtype):
    quantizer = build_started()
    indices = torch.randint(0, 16, (2, 3, 5))
    decoded = quantizer.decode(indices.to(dtype))
    assert decoded.is_contiguous()
    assert torch.equal(decoded, quantizer.codebook.detach()[indices].permute(0, 3, 1, 2))


def test_minus_one_decodes_to_zeros(build_started):
    quantizer = build_started()
    decoded = quantizer.decode(torch.tensor([[-1, 15], [3, -1]]))
    codebook = quantizer.codebook.detach()
    assert torch.equal(decoded[0], torch.stack([torch.zeros(C), codebook[15]], dim=1))
    assert torch.equal(decoded[1], torch.stack([codebook[3], torch.zeros(C)], dim=1))


@pytest.mark.parametrize("shape", [(0, C), (0, C, 5, 6), (2, C, 0, 6)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("started", [True, False])
def test_an_empty_batch_is_fine(build, build_started, state_of, differing, shape, training, started):
    """Defect 12: the mean over nothing is 0, not NaN."""
    quantizer = (build_started if started else build)().train(training)
    quantizer.update_()
    before = state_of(quantizer)
    z = torch.randn(shape, requires_grad=True)
    quantized, indices, loss, terms = quantizer(z)
    (loss + quantized.sum()).backward()
    quantizer.update_()

    assert loss == 0
    assert terms == {"commitment": 0, "codebook": 0, "perplexity": 1, "usage": 0}
    assert quantized.shape == shape
    assert indices.shape == (shape[0], *shape[2:])
    assert quantizer.decode(indices).shape == shape
    assert not differing(quantizer, before)
    assert quantizer.codebook.grad is None or not quantizer.codebook.grad.any()
