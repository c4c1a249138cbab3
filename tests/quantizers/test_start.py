"""How a codebook starts: from the first training batch, or from the original's uniform distribution."""

import pytest
import torch

from vq_components import GroupedQuantizer, ResidualQuantizer, VectorQuantizer


def positions(entries, vectors):
    """Where each entry occurs among the vectors, bit for bit; -1 if nowhere."""
    same = (entries[:, None] == vectors).all(dim=2)
    return torch.where(same.any(dim=1), same.int().argmax(dim=1), -1)


@pytest.mark.parametrize("n", [16, 17, 31, 1000])
def test_entries_are_distinct_vectors_of_the_first_batch(build, n):
    quantizer = build()
    z = torch.randn(n, 4)
    out = quantizer(z)
    where = positions(quantizer.codebook.detach(), z)
    assert (where >= 0).all()
    assert len(where.unique()) == 16
    assert torch.equal(quantizer.decode(out.indices), out.quantized)
    assert len(out.indices.unique()) == 16  # each entry is used by the vector that it is


def test_later_batches_do_not_start_it_again(build):
    quantizer = build(revival=None)
    quantizer.update_()
    quantizer(torch.randn(50, 4))
    kept = quantizer.codebook.detach().clone()
    quantizer(torch.randn(50, 4))
    assert torch.equal(quantizer.codebook, kept)


@pytest.mark.parametrize("n", [1, 2, 5, 15])
def test_with_too_few_vectors_the_rest_lies_between_them(build, n):
    """A quarter of the way from one vector to another."""
    quantizer = build()
    z = torch.randn(n, 4)
    quantizer(z)
    entries = quantizer.codebook.detach()
    assert set(positions(entries, z).tolist()) >= set(range(n))  # all vectors are there
    between = torch.lerp(z[:, None], z, 0.25).view(-1, 4)
    assert torch.cdist(entries, between, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1).max() < 1e-6
    if n * n >= 16:
        assert len(entries.unique(dim=0)) == 16
    assert (quantizer(z).quantized - z).abs().max() < 1e-6 or n > 16


def test_it_draws_from_the_whole_batch(build):
    """Not from its first vectors."""
    quantizer = build()
    z = torch.randn(4000, 4)
    quantizer(z)
    where = positions(quantizer.codebook.detach(), z)
    assert where.min() < 1000
    assert where.max() >= 3000
    assert where.float().mean().sub(2000).abs() < 1200


@pytest.mark.parametrize("pattern", ["random", "second half", "every second", "every 16th"])
def test_masked_and_broken_vectors_are_never_used(build, pattern):
    """With 16 live vectors or more, whatever the pattern, no entry is made up."""
    live = {
        "random": torch.rand(400) > 0.5,
        "second half": torch.arange(400) >= 200,
        "every second": torch.arange(400) % 2 == 0,
        "every 16th": torch.arange(400) % 16 == 3,
    }[pattern]
    z = torch.randn(400, 4)
    for vectors, mask in ((z, live), (torch.where(live[:, None], z, torch.nan), None)):
        quantizer = build()
        quantizer(vectors, mask)
        where = positions(quantizer.codebook.detach(), z)
        assert (where >= 0).all()
        assert live[where].all()
        assert len(where.unique()) == 16


@pytest.mark.parametrize("kind", ["masked", "nan", "empty"])
def test_a_batch_without_a_live_vector_postpones_the_start(build, kind):
    quantizer = build()
    kept = quantizer.codebook.detach().clone()
    nothing = {
        "masked": (torch.randn(50, 4), torch.zeros(50, dtype=torch.bool)),
        "nan": (torch.full((50, 4), torch.nan), None),
        "empty": (torch.randn(0, 4), None),
    }[kind]
    quantizer(*nothing)
    assert torch.equal(quantizer.codebook, kept)
    z = torch.randn(50, 4)
    quantizer(z)
    assert (positions(quantizer.codebook.detach(), z) >= 0).all()


def test_evaluation_never_starts_it(build):
    quantizer = build().eval()
    kept = quantizer.codebook.detach().clone()
    out = quantizer(torch.randn(50, 4))
    quantizer.encode(torch.randn(50, 4))
    assert torch.equal(quantizer.codebook, kept)
    assert torch.equal(kept[out.indices], out.quantized)
    z = torch.randn(50, 4)
    quantizer.train()(z)
    assert (positions(quantizer.codebook.detach(), z) >= 0).all()


def test_entries_written_by_hand_before_the_start_are_overwritten(build):
    quantizer = build()
    with torch.no_grad():
        quantizer.codebook.fill_(3)
    z = torch.randn(50, 4)
    quantizer(z)
    assert (positions(quantizer.codebook.detach(), z) >= 0).all()


@pytest.mark.parametrize("init", ["data", "uniform"])
def test_a_fresh_codebook_is_the_originals(build, init):
    """``U(-1/K, 1/K)``: before the start too, for those who evaluate first."""
    entries = torch.cat([build(init=init).codebook.detach() for _ in range(50)])
    assert entries.abs().max() <= 1 / 16
    torch.testing.assert_close(entries.std(), torch.tensor(1 / 16 / 3**0.5), rtol=0.05, atol=0)
    assert entries.mean().abs() < 0.003


def test_a_uniform_start_does_not_look_at_the_data(build):
    quantizer = build(init="uniform")
    kept = quantizer.codebook.detach().clone()
    quantizer(torch.randn(50, 4))
    assert torch.equal(quantizer.codebook, kept)


def test_the_start_is_the_same_in_every_run(build):
    """It takes no random numbers: which vectors are drawn depends on the batch alone."""
    z = torch.randn(100, 4)
    codebooks = []
    for seed in range(2):
        torch.manual_seed(seed)
        quantizer = build()
        state = torch.get_rng_state()
        quantizer(z)
        assert torch.equal(torch.get_rng_state(), state)
        codebooks.append(quantizer.codebook)
    assert torch.equal(*codebooks)


def test_settings_that_make_no_sense_are_refused(build):
    name = type(build()).__name__
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        build(init="kmeans")
    assert str(error.value) == "init must be 'data' or 'uniform', but got 'kmeans'."
    with pytest.raises(ValueError) as error:  # noqa: PT011
        build(channel_dim=0)
    assert str(error.value) == (
        f"{name} needs the channels in another dimension than the batch, which is dimension 0, "
        f"but got channel_dim=0. Pass 1 for (B, C, H, W), -1 for channels last."
    )
    for size, dim in ((0, 4), (16, 0), (-1, 4)):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            build.func(size, dim)
        assert str(error.value) == (
            f"A codebook needs at least one entry and one channel, but got codebook_size={size}, codebook_dim={dim}."
        )


def test_later_stages_start_from_what_is_left_of_new_vectors(build):
    """The stage before has just made most of its own batch zero: what is left of that is one vector, many times."""
    quantizer = ResidualQuantizer([build(revival=None) for _ in range(4)])
    for _ in range(4):
        quantizer(torch.randn(24, 4))
        quantizer.update_()
    for stage in quantizer.quantizers:
        assert len(stage.codebook.unique(dim=0)) == 16


@pytest.mark.parametrize(("part", "expected"), [(ResidualQuantizer, [1, 2, 3, 4]), (GroupedQuantizer, [1, 1, 2, 2])])
def test_nested_stages_start_in_the_order_in_which_they_compute(part, expected):
    quantizer = ResidualQuantizer([part([VectorQuantizer(16, 4), VectorQuantizer(16, 4)]) for _ in range(2)])
    codebooks = [stage.embedding for inner in quantizer.quantizers for stage in inner.quantizers]
    forwards = [0] * len(codebooks)
    for _ in range(5):
        forwards = [n + (not codebook.started) for n, codebook in zip(forwards, codebooks, strict=True)]
        quantizer(torch.randn(24, quantizer.dim))
        quantizer.update_()
    assert forwards == expected
