"""FSQ and LFQ against plain loops over numbers."""

import itertools
import math

import pytest
import torch

from vq_components import FSQ, LFQ

PUBLISHED = {
    (8, 6, 5): 240,
    (8, 5, 5, 5): 1000,
    (7, 5, 5, 5, 5): 4375,
    (8, 8, 8, 6, 5): 15360,
    (8, 8, 8, 5, 5, 5): 64000,
}


def bound(x, levels):
    """Mentzer et al. (2023), appendix A.1, for one number."""
    half = (levels - 1) * (1 - 1e-3) / 2
    offset = 0.0 if levels % 2 == 1 else 0.5
    return math.tanh(x + math.tan(offset / half)) * half - offset


def fsq_one(row, levels):
    number, step, entry = 0, 1, []
    for x, count in zip(row, levels, strict=True):
        rounded = round(bound(x, count))
        entry.append(rounded / (count // 2))
        number += (rounded + count // 2) * step
        step *= count
    return entry, number


@pytest.mark.parametrize("levels", [*PUBLISHED, (2, 3), (4,)])
def test_fsq_equals_the_papers_formula(levels):
    quantizer = FSQ(levels)
    z = 2 * torch.randn(50, len(levels), dtype=torch.float64)
    out = quantizer(z)
    expected = [fsq_one(row, levels) for row in z.tolist()]
    assert out.indices.tolist() == [number for _, number in expected]
    torch.testing.assert_close(out.quantized, torch.tensor([entry for entry, _ in expected], dtype=torch.float64))
    assert out.loss == 0
    assert quantizer.codebook_size == PUBLISHED.get(levels, math.prod(levels))


@pytest.mark.parametrize("levels", [(8, 6, 5), (2, 3), (4,)])
def test_fsq_numbers_all_entries_with_the_first_channel_fastest(levels):
    grids = [[(n - count // 2) / (count // 2) for n in range(count)] for count in levels]
    expected = [entry[::-1] for entry in itertools.product(*grids[::-1])]
    codebook = FSQ(levels).codebook
    torch.testing.assert_close(codebook, torch.tensor(expected))
    assert codebook.abs().max() <= 1


def test_every_level_can_be_reached_and_none_beyond():
    z = torch.linspace(-30, 30, 6001)[:, None]
    for count in range(2, 12):
        assert FSQ((count,))(z).indices.unique().tolist() == list(range(count))


@pytest.mark.parametrize("count", [1000, 1001, 1002, 5003, 70_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_outermost_of_many_levels_can_be_reached(count, dtype):
    found = FSQ((count,)).encode(torch.tensor([[-30.0], [0.0], [30.0]], dtype=dtype))
    assert found.tolist() == [0, count // 2, count - 1]


def test_fsqs_gradient_is_the_bounds():
    """Rounding is straight through, the bound is not: far out the gradient vanishes."""
    levels = (8, 5)
    z = torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(FSQ(levels)(z).quantized.sum(), z)
    step = 1e-6
    for n, row in enumerate(z.tolist()):
        for c, (x, count) in enumerate(zip(row, levels, strict=True)):
            slope = (bound(x + step, count) - bound(x - step, count)) / (2 * step) / (count // 2)
            assert gradient[n, c].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_fsq_has_nothing_to_train_or_to_save():
    quantizer = FSQ((8, 5))
    assert not quantizer.state_dict()
    assert not list(quantizer.parameters())
    z = torch.randn(5, 2, requires_grad=True)
    quantizer(z).loss.backward()
    assert not z.grad.any()


def lfq_terms(z, temperature):
    """Both entropies over all entries, from the definition."""
    bits = z.shape[1]
    entries = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=bits)), dtype=z.dtype)
    q = (-(z[:, None] - entries).square().sum(dim=2) / temperature).softmax(dim=1)
    sample = torch.special.entr(q).sum(dim=1).mean()
    return sample, torch.special.entr(q.mean(dim=0)).sum()


@pytest.mark.parametrize("bits", [1, 2, 5])
@pytest.mark.parametrize("diversity_weight", [1.0, 0.0, 2.5])
def test_lfq_equals_the_definition_value_and_gradient(bits, diversity_weight):
    settings = {"entropy_weight": 0.3, "diversity_weight": diversity_weight, "commitment_weight": 0.7}
    quantizer = LFQ(bits, temperature=1.5, **settings)
    z = torch.randn(12, bits, dtype=torch.float64, requires_grad=True)
    out = quantizer(z)

    signs = torch.where(z > 0, 1.0, -1.0).double()
    assert torch.equal(out.quantized, signs)
    assert out.indices.tolist() == [sum(2**i for i, x in enumerate(row) if x > 0) for row in z.tolist()]
    sample, batch = lfq_terms(z, 1.5)
    commitment = (z - signs).square().mean()
    loss = 0.3 * (sample - diversity_weight * batch) + 0.7 * commitment
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(out.terms["entropy"], sample.detach().float())
    torch.testing.assert_close(out.terms["diversity"], batch.detach().float())
    torch.testing.assert_close(torch.autograd.grad(out.loss, z)[0], torch.autograd.grad(loss, z)[0])


def test_lfqs_output_gradient_is_straight_through():
    z, gradient = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    assert torch.equal(torch.autograd.grad(LFQ(3)(z).quantized, z, gradient)[0], gradient)


def test_lfq_numbers_its_entries_with_the_first_channel_fastest():
    expected = [entry[::-1] for entry in itertools.product([-1.0, 1.0], repeat=4)]
    assert LFQ(4).codebook.tolist() == [list(entry) for entry in expected]


def test_lfq_keeps_every_bit_of_a_wide_index():
    z = torch.randn(20, 60)
    expected = [sum(1 << n for n, x in enumerate(row) if x > 0) for row in z.tolist()]
    assert LFQ(60).encode(z).tolist() == expected
    assert torch.equal(LFQ(60).decode(torch.tensor(expected)), torch.where(z > 0, 1.0, -1.0))


def test_zero_is_negative():
    assert LFQ(2)(torch.tensor([[0.0, -0.0]])).quantized.tolist() == [[-1.0, -1.0]]


def test_lfq_stays_finite_where_the_assignments_are_certain():
    z = (100 * torch.randn(40, 12)).requires_grad_()
    out = LFQ(12, temperature=1e-4)(z)
    out.loss.backward()
    assert out.loss.isfinite()
    assert z.grad.isfinite().all()
    assert out.terms["entropy"] == 0
    assert out.terms["diversity"].item() == pytest.approx(math.log(len(out.indices.unique())), rel=1e-3)


def test_settings_out_of_range_raise():
    cases = [
        (lambda: FSQ(()), "FSQ needs at least 2 levels for each channel, but got levels=()."),
        (lambda: FSQ((5, 1)), "FSQ needs at least 2 levels for each channel, but got levels=(5, 1)."),
        (
            lambda: LFQ(63),
            "LFQ needs 1 to 62 bits and a positive temperature, but got num_bits=63, temperature=0.01.",
        ),
        (
            lambda: LFQ(4, temperature=0),
            "LFQ needs 1 to 62 bits and a positive temperature, but got num_bits=4, temperature=0.",
        ),
    ]
    for make, message in cases:
        with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
            make()
        assert str(error.value) == message


def test_more_entries_than_int64_can_number_are_refused():
    with pytest.raises(ValueError, match="int64"):
        FSQ([8] * 21)
    assert FSQ([2] * 62).codebook_size == 2**62
