import math

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from vq_components import functional
from vq_components.functional import _search

# Scores of a tile and its columns, from as few as possible to all at once.
TILES = pytest.mark.parametrize("tile", [(1, 1), (1, 100), (192, 48), (2**12, 1), (2**18, 2**12)])


@pytest.fixture
def set_tile(monkeypatch):
    def set_tile(tile):
        monkeypatch.setattr(_search, "_TILE_ON_CPU", tile[0])
        monkeypatch.setattr(_search, "_MOST_COLUMNS", tile[1])

    return set_tile


def distances(z, codebook):
    """All squared distances in float64, ``(N, K)``, without the expansion that the package uses."""
    z, codebook = z.detach().double().numpy(), codebook.detach().double().numpy()
    return np.array([((row - codebook) ** 2).sum(axis=1) for row in z]).reshape(len(z), len(codebook))


def brute_force(z, codebook):
    return torch.from_numpy(distances(z, codebook).argmin(axis=1).astype(np.int64))


@TILES
@pytest.mark.parametrize(
    ("n", "k", "d"), [(0, 5, 3), (1, 1, 1), (7, 10, 3), (130, 33, 8), (65, 200, 16), (40, 2100, 5)]
)
def test_nearest_code_equals_brute_force(set_tile, tile, n, k, d):
    set_tile(tile)
    z, codebook = torch.randn(n, d), torch.randn(k, d)
    indices = functional.nearest_code(z, codebook)
    assert indices.shape == (n,)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, brute_force(z, codebook))


@TILES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_first_of_equally_near_entries_wins(set_tile, tile, dtype):
    """Small integers: every score is exact, most vectors are equally near to several entries."""
    set_tile(tile)
    z = torch.randint(-3, 4, (100, 2)).to(dtype)
    codebook = torch.randint(-2, 3, (150, 2)).to(dtype)
    assert torch.equal(functional.nearest_code(z, codebook), brute_force(z, codebook))


@pytest.mark.parametrize("k", [2, 5, 7, 17, 31, 33, 66, 127, 1000])
@pytest.mark.parametrize("d", [1, 4, 16, 64])
def test_the_first_of_equal_entries_wins(k, d):
    """Equal entries must get equal scores, wherever a matrix product's kernels put the edge of their blocks."""
    codebook = torch.randn((k + 1) // 2, d).repeat(2, 1)[torch.randperm(k)]
    first = (codebook[:, None] == codebook).all(dim=2).int().argmax(dim=1)  # the first entry equal to each
    indices = functional.nearest_code(torch.randn(200, d), codebook)
    assert torch.equal(indices, first[indices])


@TILES
def test_zeros_of_either_sign_are_equal(set_tile, tile):
    set_tile(tile)
    codebook = torch.tensor([[1.0], [-0.0], [0.0]])
    assert functional.nearest_code(torch.tensor([[0.0], [-0.0]]), codebook).tolist() == [1, 1]


@TILES
def test_an_infinite_entry_is_never_the_nearest(set_tile, tile):
    set_tile(tile)
    codebook = torch.tensor([[torch.inf, 0.0], [torch.inf, -torch.inf], [5.0, 5.0], [-torch.inf, 1.0]])
    assert functional.nearest_code(torch.tensor([[1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]]), codebook).tolist() == [2, 2, 2]


@TILES
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_vector_that_is_not_finite_harms_no_other(set_tile, tile, bad):
    set_tile(tile)
    z, codebook = torch.randn(9, 4), torch.randn(11, 4)
    expected = functional.nearest_code(z, codebook)
    z[3, 1] = bad
    indices = functional.nearest_code(z, codebook)
    others = torch.arange(9) != 3
    assert torch.equal(indices[others], expected[others])
    assert 0 <= indices[3] < 11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_near_the_origin_are_told_apart(dtype):
    """Defect 16: with |z|^2 in the sum, or in bf16, the original's start picks the right code for hardly any token."""
    k, d = 1024, 64
    codebook = torch.empty(k, d).uniform_(-1 / k, 1 / k).to(dtype)
    z = (2 * torch.randn(256, d)).to(dtype)  # of norm 16
    assert torch.equal(functional.nearest_code(z, codebook), brute_force(z, codebook))


def test_float64_stays_float64():
    """Two entries that float32 cannot tell apart."""
    codebook = torch.tensor([[1.0], [1.0 + 1e-6]], dtype=torch.float64)
    z = torch.tensor([[1.0], [1.0 + 1e-6]], dtype=torch.float64)
    assert functional.nearest_code(z, codebook).tolist() == [0, 1]


def test_mixed_dtypes_are_computed_in_the_wider_one():
    codebook = torch.tensor([[1.0], [1.0 + 1e-9]], dtype=torch.float64)
    assert functional.nearest_code(torch.tensor([[2.0]]), codebook).tolist() == [1]
    assert functional.nearest_code(torch.tensor([[2.0]], dtype=torch.bfloat16), codebook).tolist() == [1]


def test_autocast_does_not_apply():
    """Defect 16."""
    z, codebook = torch.randn(500, 32), torch.randn(300, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (z @ codebook.T).dtype == torch.bfloat16
        indices = functional.nearest_code(z, codebook)
    assert torch.equal(indices, brute_force(z, codebook))


def matmul_settings():
    switches = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    new = [switch.fp32_precision for switch in switches if hasattr(switch, "fp32_precision")]
    return new or [torch.get_float32_matmul_precision()]


@pytest.mark.parametrize("fails", [False, True])
def test_reduced_matmul_precision_does_not_apply_and_is_restored(monkeypatch, fails):
    seen = []
    bmm = torch.bmm

    def spy(*args, **kwargs):
        seen.extend(matmul_settings())
        if fails:
            raise RuntimeError("out of memory")
        return bmm(*args, **kwargs)

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    chosen = matmul_settings()
    try:
        monkeypatch.setattr(torch, "bmm", spy)
        if fails:
            with pytest.raises(RuntimeError, match=r"^out of memory$"):
                functional.nearest_code(torch.randn(3, 2), torch.randn(4, 2))
        else:
            functional.nearest_code(torch.randn(3, 2), torch.randn(4, 2))
        assert torch.get_float32_matmul_precision() == "medium"
        assert matmul_settings() == chosen
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen
    assert set(seen) <= {"ieee", "highest"}


def test_memory_layout_does_not_matter():
    wide, tall = torch.randn(50, 12), torch.randn(6, 40)
    z, codebook = wide[:, ::2], tall.T
    expected = functional.nearest_code(z.contiguous(), codebook.contiguous())
    assert torch.equal(functional.nearest_code(z, codebook), expected)
    assert torch.equal(functional.nearest_code(z.flip(0), codebook).flip(0), expected)
    assert torch.equal(functional.nearest_code(z[:1].expand(5, -1), codebook), expected[:1].expand(5))


def test_inputs_that_require_a_gradient_give_indices_without_one():
    z, codebook = torch.randn(5, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    assert not functional.nearest_code(z, codebook).requires_grad


def test_no_matrix_of_all_distances_exists():
    """Defect 11: all distances of this call are 32 MiB."""
    n, k, d = 2048, 4096, 8
    z, codebook = torch.randn(n, d), torch.randn(k, d)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        functional.nearest_code(z, codebook)
    sizes = [event.nbytes() for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = int(np.cumsum(sizes).max())
    assert 0 < peak < n * k * 4 // 4


@pytest.mark.parametrize(
    ("z", "codebook"), [((2, 3, 4), (5, 4)), ((2, 3), (5, 4)), ((3,), (5, 3)), ((2, 3), (3,)), ((2, 3), (0, 3))]
)
def test_nearest_code_rejects_shapes_that_do_not_fit(z, codebook):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        functional.nearest_code(torch.zeros(z), torch.zeros(codebook))
    assert str(error.value) == (
        f"nearest_code compares vectors (N, D) with a codebook (K, D) of at least one entry, "
        f"but got shapes {z} and {codebook}. Flatten z to vectors (N, D)."
    )


@pytest.mark.parametrize(("a", "b"), [(torch.int64, torch.float32), (torch.float32, torch.int32)])
def test_nearest_code_rejects_integers(a, b):
    with pytest.raises(TypeError) as error:
        functional.nearest_code(torch.zeros(2, 3, dtype=a), torch.zeros(4, 3, dtype=b))
    assert str(error.value) == (
        f"nearest_code compares floating point tensors, but got {a} and {b}. Convert both with .float()."
    )


@pytest.mark.parametrize(
    ("indices", "perplexity", "usage"),
    [
        (list(range(8)) * 3, 8.0, 1.0),
        ([5] * 10, 1.0, 1 / 8),
        ([0, 0, 0, 7], math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), 2 / 8),
        ([[0, 1], [-1, -1]], 2.0, 2 / 8),  # masked positions do not count
        ([-1, -1], 1.0, 0.0),
        ([], 1.0, 0.0),
    ],
)
def test_perplexity_and_usage_have_closed_forms(indices, perplexity, usage):
    indices = torch.tensor(indices, dtype=torch.int64)
    for measure, expected in ((functional.perplexity, perplexity), (functional.codebook_usage, usage)):
        torch.testing.assert_close(measure(indices, 8), torch.tensor(expected))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_every_integer_dtype_counts_alike(dtype):
    indices = torch.tensor([[1, 2], [2, 100]], dtype=dtype)
    torch.testing.assert_close(functional.codebook_usage(indices, 200), torch.tensor(3 / 200))
    torch.testing.assert_close(functional.perplexity(indices, 200), functional.perplexity(indices.long(), 200))


@pytest.mark.parametrize("measure", [functional.perplexity, functional.codebook_usage])
@pytest.mark.parametrize(("indices", "low", "high"), [([0, 8], 0, 8), ([-2, 3], -2, 3)])
def test_indices_outside_the_codebook_are_rejected(measure, indices, low, high):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        measure(torch.tensor(indices), codebook_size=8)
    assert str(error.value) == (
        f"{measure.__name__} takes indices in [0, 8), or -1 for masked positions, "
        f"but got values from {low} to {high}. Were they made with a larger codebook?"
    )


@pytest.mark.parametrize("measure", [functional.perplexity, functional.codebook_usage])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_indices_that_are_no_integers_are_rejected(measure, dtype):
    with pytest.raises(TypeError) as error:
        measure(torch.zeros(3, dtype=dtype), codebook_size=8)
    assert str(error.value) == (
        f"{measure.__name__} takes integer indices, but got {dtype}. Convert them with .long()."
    )


@pytest.mark.parametrize("offset", [0.0, 30.0, 1e3, 1e4])
@pytest.mark.parametrize("search", [functional.nearest_code, _search.plain_search])
def test_entries_far_from_zero_and_close_to_each_other_are_told_apart(offset, search):
    generator = torch.Generator().manual_seed(0)
    z, codebook = (torch.randn(count, 16, generator=generator) + offset for count in (500, 300))
    exact = torch.cdist(z.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
    assert torch.equal(search(z, codebook), exact)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has one setting")
def test_a_precision_that_is_inherited_is_not_pinned(monkeypatch):
    monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")
    functional.nearest_code(torch.randn(4, 3), torch.randn(5, 3))
    torch.backends.fp32_precision = "ieee"
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
