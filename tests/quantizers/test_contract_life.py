"""The contract of every quantizer, part 4: copies, checkpoints and conversions, at every stage of life."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

STAGES = ["fresh", "pending", "updated", "manual"]


@pytest.fixture(params=STAGES)
def build_at(request, build):
    """``build_at(**settings)``: a quantizer at each stage of its life."""

    def make(**settings):
        quantizer = build(**settings)
        if request.param != "fresh":
            for _ in range(4):
                quantizer(torch.randn(9, 4, 5))
        if request.param == "updated":
            quantizer._update()
        if request.param == "manual":
            quantizer.update_()
            quantizer(torch.randn(9, 4, 5))
        return quantizer

    return make


def through_a_checkpoint(quantizer, build):
    file = io.BytesIO()
    torch.save(quantizer.state_dict(), file)
    file.seek(0)
    other = build()
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    return other


def through_a_pickle(quantizer, build):
    return pickle.loads(pickle.dumps(quantizer))


def through_a_deepcopy(quantizer, build):
    return copy.deepcopy(quantizer)


def onto_a_used_one(quantizer, build):
    """What was pending, started or manual in the target must not remain."""
    other = build()
    for _ in range(2):
        other(torch.randn(9, 4, 5))
        other.update_()
    other(torch.randn(9, 4, 5))
    other.load_state_dict(quantizer.state_dict(), strict=True)
    return other


WAYS = pytest.mark.parametrize("way", [through_a_checkpoint, through_a_pickle, through_a_deepcopy, onto_a_used_one])


@WAYS
def test_a_copy_goes_on_as_the_original(build, build_at, differing, way):
    quantizer = build_at()
    other = way(quantizer, build)
    assert not differing(quantizer, other)
    for step in range(3):
        z = torch.randn(9, 4, 5)
        out, expected = other(z), quantizer(z)
        assert torch.equal(out.quantized, expected.quantized)
        assert torch.equal(out.loss, expected.loss)
        assert not differing(quantizer, other), step
    for module in (quantizer, other):
        module.update_()
    assert not differing(quantizer, other)


@WAYS
def test_a_copy_shares_nothing(build, build_at, state_of, differing, way):
    quantizer = build_at()
    other = way(quantizer, build)
    before = state_of(quantizer)
    for _ in range(3):
        other(torch.randn(9, 4, 5))
    other.set_codebook_(torch.randn(16, 4))
    assert not differing(quantizer, before)


def test_the_state_has_the_originals_name_for_the_codebook(build):
    quantizer = build()
    assert quantizer.state_dict(keep_vars=True)["embedding.weight"] is quantizer.codebook


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_with_nothing_but_entries_counts_as_started(build, build_at, state_of, differing, dtype):
    """A checkpoint of the original. It must not start from data, and nothing of the target's past may remain."""
    entries = torch.randn(16, 4).to(dtype)
    given = {"0.weight": torch.randn(4, 3, 1), "0.bias": torch.randn(4), "1.embedding.weight": entries}
    kept = dict(given)
    model = nn.Sequential(nn.Conv1d(3, 4, 1), build_at())
    model.load_state_dict(given, strict=True)
    assert given == kept
    quantizer = model[1]
    assert torch.equal(quantizer.codebook, entries.float())

    expected = build()
    expected.set_codebook_(entries.float())
    assert not differing(quantizer, expected, besides=["candidates"])
    model(torch.randn(9, 3, 5))
    assert torch.equal(quantizer.codebook, entries.float())
    quantizer.update_()
    assert int(quantizer.embedding.updates) == 1


def test_loading_draws_no_random_numbers(build):
    """A run that starts from a file is no other run for having read it."""
    quantizer = build()
    before = torch.get_rng_state()
    quantizer.load_state_dict({"embedding.weight": torch.randn(16, 4, generator=torch.Generator())})
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_of_another_size_is_refused(build):
    quantizer = build()
    with pytest.raises(RuntimeError, match=r"size mismatch for embedding\.weight"):
        quantizer.load_state_dict({"embedding.weight": torch.randn(15, 4)})
    with pytest.raises(RuntimeError, match=r"size mismatch for embedding\.weight"):
        quantizer.load_state_dict({"embedding.weight": torch.randn(64)})
    with pytest.raises(RuntimeError, match=r"Missing key.*embedding\.weight"):
        quantizer.load_state_dict({})


def test_a_module_on_meta_can_be_filled_from_a_file(build, differing):
    given = build()
    for _ in range(2):
        given(torch.randn(9, 4, 5))
    with torch.device("meta"):
        quantizer = build()
    quantizer.load_state_dict(given.state_dict(), assign=True)
    assert not differing(quantizer, given)
    assert quantizer.codebook.requires_grad == given.codebook.requires_grad


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, lambda module: module.to(torch.float16)])
def test_the_codebook_stays_float32_in_a_model_of_half_precision(build_at, state_of, differing, convert):
    quantizer = build_at()
    before = state_of(quantizer)
    model = convert(nn.Sequential(nn.Conv1d(3, 4, 1), quantizer))
    assert model[1] is quantizer
    assert not differing(quantizer, before)
    dtype = model[0].weight.dtype
    assert dtype in (torch.float16, torch.bfloat16)
    for _ in range(2):
        out = model(torch.randn(9, 3, 5, dtype=dtype))
        out.loss.backward()
    assert out.quantized.dtype == model[0].weight.grad.dtype == dtype
    assert out.loss.dtype == torch.float32
    assert torch.equal(quantizer.decode(out.indices).to(dtype), out.quantized)
    quantizer.update_()
    assert quantizer.codebook.isfinite().all()
    assert {tensor.dtype for tensor in quantizer.state_dict().values() if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_codebook_in_double_precision_works(build_at, dtype):
    quantizer = build_at().double()
    assert quantizer.codebook.dtype == torch.float64
    for _ in range(3):
        z = torch.randn(9, 4, 5).to(dtype).requires_grad_()
        out = quantizer(z)
        (out.loss + out.quantized.sum()).backward()
    assert out.quantized.dtype == z.grad.dtype == dtype
    assert torch.equal(quantizer.decode(out.indices).to(dtype), out.quantized)


def test_set_codebook_replaces_entries_and_forgets_the_rest(build, build_at, differing):
    entries = torch.randn(16, 4)
    quantizer, expected = build_at(), build()
    for module in (quantizer, expected):
        module.set_codebook_(entries)
    assert not differing(quantizer, expected, besides=["candidates", "update_is_manual"])
    assert torch.equal(quantizer.codebook, entries)
    assert quantizer.codebook.data_ptr() != entries.data_ptr()
    z = torch.randn(9, 4, 5)
    assert torch.equal(quantizer(z).indices, expected(z).indices)  # it counts as started
    assert torch.equal(quantizer.codebook, entries)


def test_set_codebook_refuses_what_does_not_fit(build_started, state_of, differing):
    quantizer = build_started()
    before = state_of(quantizer)
    for shape in [(15, 4), (16, 5), (4,), (1, 16, 4)]:
        with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
            quantizer.set_codebook_(torch.randn(shape))
        assert str(error.value) == f"set_codebook_ takes entries of shape (16, 4), but got {shape}."
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            quantizer.set_codebook_(torch.full((16, 4), bad))
        assert str(error.value) == "set_codebook_ takes finite entries, but got NaN or infinite values."
    assert not differing(quantizer, before)


def test_repr_says_what_it_is(build):
    text = repr(build())
    assert "16, 4" in text
    assert "revival=DeadCodeRevival(" in text
