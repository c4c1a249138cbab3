"""Filters and draws, against plain Python on one row at a time."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vq_components.functional import filter_logits
from vq_components.functional._sampling import draw

INF = math.inf


def load_reference():
    path = Path(__file__).parents[1] / "reference" / "sampling.py"
    spec = importlib.util.spec_from_file_location("reference_sampling_functional", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_reference()
# Few different values, so that there are ties, and gaps wide enough for float64 to order sums as exact numbers would.
ROWS = st.lists(
    st.sampled_from([-INF, -3.0, -1.1, 0.0, 0.7, 1.3, 2.9]) | st.floats(-5, 5, width=32), min_size=1, max_size=9
).filter(lambda row: max(row) > -INF)
TEMPERATURES = st.sampled_from([0, 0.3, 1.0, 2.5])
TOP_K = st.none() | st.integers(1, 12)
TOP_P = st.none() | st.floats(0.01, 1)
MIN_P = st.none() | st.floats(0, 1)


def nearly_tied(row, rules):
    """Whether a threshold falls so close to a sum or share that rounding decides."""
    row = reference.filter_row(row, temperature=rules["temperature"], top_k=rules["top_k"])
    if rules["top_p"] is not None:
        total = 0.0
        for p in sorted(reference.softmax(row), reverse=True):
            total += p
            if abs(total - rules["top_p"]) < 1e-9:
                return True
        row = reference.filter_row(row, top_p=rules["top_p"])
    if rules["min_p"] is not None:
        shares = reference.softmax(row)
        return any(0 < abs(p / max(shares) - rules["min_p"]) < 1e-9 for p in shares)
    return False


@settings(deadline=None, max_examples=300)
@given(ROWS, TEMPERATURES, TOP_K, TOP_P, MIN_P)
def test_all_filters_together_are_the_slow_ones(row, temperature, top_k, top_p, min_p):
    rules = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    if nearly_tied(row, rules):
        return
    expected = torch.tensor(reference.filter_row(row, **rules), dtype=torch.float64)
    torch.testing.assert_close(filter_logits(torch.tensor(row, dtype=torch.float64), **rules), expected)


@settings(deadline=None)
@given(st.lists(st.permutations([-INF, -1.1, 0.0, 0.0, 2.9]), min_size=1, max_size=4), TEMPERATURES, TOP_K, TOP_P)
def test_rows_do_not_matter_to_each_other(rows, temperature, top_k, top_p):
    rules = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": 0.2}
    logits = torch.tensor(rows, dtype=torch.float64)[:, None]  # any leading shape
    filtered = filter_logits(logits, **rules)
    assert filtered.shape == logits.shape
    for each, row in zip(filtered, logits, strict=True):
        assert torch.equal(each[0], filter_logits(row[0], **rules))


@settings(deadline=None)
@given(ROWS, TEMPERATURES, TOP_K, TOP_P, MIN_P)
def test_the_likeliest_token_stays_and_the_impossible_stay_so(row, temperature, top_k, top_p, min_p):
    filtered = filter_logits(torch.tensor(row), temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p).tolist()
    assert filtered[row.index(max(row))] > -INF
    assert not any(before == -INF and after > -INF for before, after in zip(row, filtered, strict=True))
    assert not any(map(math.isnan, filtered))


LOG = [math.log(p) for p in (0.1, 0.4, 0.2, 0.3)]


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ({}, {0, 1, 2, 3}),
        ({"temperature": 0}, {1}),
        ({"temperature": 0.1}, {0, 1, 2, 3}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 2, 3}),
        ({"top_k": 4}, {0, 1, 2, 3}),
        ({"top_k": 10**9}, {0, 1, 2, 3}),
        ({"top_p": 1e-9}, {1}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.41}, {1, 3}),
        ({"top_p": 0.71}, {1, 2, 3}),
        ({"top_p": 1}, {0, 1, 2, 3}),
        ({"min_p": 0}, {0, 1, 2, 3}),
        ({"min_p": 0.49}, {1, 2, 3}),
        ({"min_p": 0.51}, {1, 3}),
        ({"min_p": 1}, {1}),
        ({"top_k": 3, "top_p": 0.7}, {1, 3}),  # 0.4 + 0.3 of 0.9 is 0.78
        ({"top_p": 0.75, "min_p": 0.6}, {1, 3}),
        ({"temperature": 2, "min_p": 0.51}, {1, 2, 3}),  # the square roots of shares: 0.5, 1, 0.71, 0.87
    ],
)
def test_filters_by_hand(rules, kept):
    filtered = filter_logits(torch.tensor(LOG, dtype=torch.float64), **rules).tolist()
    assert {token for token, logit in enumerate(filtered) if logit > -INF} == kept


def test_logits_are_divided_by_the_temperature_and_otherwise_kept():
    logits = torch.tensor([1.0, 3.0, -INF])
    assert filter_logits(logits, temperature=0.5, top_k=2).tolist() == [2, 6, -INF]
    assert logits.tolist() == [1, 3, -INF]


def test_the_callers_logits_stay_as_they_are():
    logits = torch.randn(3, 8)
    kept = logits.clone()
    for rules in ({"temperature": 0.5}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.3}):
        filter_logits(logits, **rules)
        assert torch.equal(logits, kept)


def test_top_k_keeps_all_that_tie_with_the_last():
    assert filter_logits(torch.tensor([1.0, 2.0, 1.0, 0.0]), top_k=2).tolist() == [1, 2, 1, -INF]


def test_at_temperature_0_the_first_of_several_likeliest_is_taken():
    assert filter_logits(torch.tensor([[1.0, 2.0, 2.0], [5.0, 5.0, 5.0]]), temperature=0).softmax(-1).tolist() == [
        [0, 1, 0],
        [1, 0, 0],
    ]


@pytest.mark.parametrize("rules", [{}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_types_are_computed_in_float32(rules, dtype):
    logits = torch.randn(3, 7).to(dtype)
    full = torch.float32 if dtype.itemsize < 4 else dtype
    filtered = filter_logits(logits, **rules)
    assert filtered.dtype == full
    assert torch.equal(filtered, filter_logits(logits.to(full), **rules))


@pytest.mark.parametrize("temperature", [1e-30, 1e-39, 1e30, 1e39, INF])
def test_extreme_temperatures_have_their_limits(temperature):
    """Any positive one is allowed: what overflows must not become NaN."""
    probabilities = filter_logits(torch.tensor([3.0, 40.0, -INF]), temperature=temperature).softmax(dim=-1)
    limit = [0.0, 1.0, 0.0] if temperature < 1 else [0.5, 0.5, 0.0]
    torch.testing.assert_close(probabilities, torch.tensor(limit))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"temperature": -0.1}, "temperature must be positive, or 0 for the likeliest token, but got -0.1."),
        ({"temperature": math.nan}, "temperature must be positive, or 0 for the likeliest token, but got nan."),
        ({"top_k": 0}, "top_k must be at least 1, but got 0. Pass None to keep all tokens."),
        ({"top_k": -2}, "top_k must be at least 1, but got -2. Pass None to keep all tokens."),
        ({"top_p": 0}, "top_p must be in (0, 1], but got 0. Pass None to keep all tokens."),
        ({"top_p": 1.1}, "top_p must be in (0, 1], but got 1.1. Pass None to keep all tokens."),
        ({"top_p": math.nan}, "top_p must be in (0, 1], but got nan. Pass None to keep all tokens."),
        ({"min_p": -0.1}, "min_p must be in [0, 1], but got -0.1. Pass None to keep all tokens."),
        ({"min_p": 1.1}, "min_p must be in [0, 1], but got 1.1. Pass None to keep all tokens."),
    ],
)
@pytest.mark.parametrize("others", [{}, {"temperature": 0}])
def test_settings_out_of_range_are_an_error(rules, message, others):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        filter_logits(torch.zeros(4), **{**others, **rules})
    assert str(error.value) == message


@settings(deadline=None, max_examples=200)
@given(ROWS, st.integers(0, 2**24 - 1))
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(row, steps):
    uniform = steps / 2**24  # what torch.rand() draws
    passed = [sum(reference.softmax(row)[: token + 1]) for token in range(len(row))]
    if any(abs(bound - uniform) < 1e-12 for bound in passed):
        return
    token = draw(torch.tensor(row, dtype=torch.float64), torch.tensor(uniform))
    assert token.item() == reference.pick(row, uniform)


@settings(deadline=None, max_examples=200)
@given(ROWS, st.sampled_from([torch.float32, torch.float64]), st.sampled_from([torch.float32, torch.float64]))
def test_a_token_of_probability_0_is_never_drawn(row, dtype, uniform_dtype):
    """Also at 0, and at the number before 1 (which float32 rounds to 1)."""
    logits = torch.tensor(row, dtype=dtype)
    nearly_1 = torch.nextafter(torch.ones((), dtype=uniform_dtype), torch.zeros((), dtype=uniform_dtype))
    uniform = torch.stack([torch.zeros((), dtype=uniform_dtype), nearly_1, torch.rand((), dtype=uniform_dtype)])
    tokens = draw(logits.expand(3, -1), uniform)
    assert (logits[tokens] > -INF).all()


def test_of_many_tokens_too_the_impossible_ones_are_never_drawn():
    """Where sums of many small numbers round: neither behind the last possible token nor between."""
    logits = torch.randn(20, 3000)
    logits[:, ::2] = -INF
    logits[:, 2000:] = -INF
    for value in (0.0, 1 - 2**-24, 0.5):
        tokens = draw(logits, torch.full((20,), value))
        assert logits.gather(1, tokens[:, None]).isfinite().all()


def test_draws_have_any_leading_shape():
    logits, uniform = torch.randn(2, 3, 5, dtype=torch.float64), torch.rand(2, 3)
    tokens = draw(logits, uniform)
    assert tokens.dtype == torch.int64
    for i in range(2):
        for j in range(3):
            assert tokens[i, j].item() == reference.pick(logits[i, j].tolist(), uniform[i, j].item())
