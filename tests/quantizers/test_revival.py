"""Entries that hardly any vector chooses move to where the vectors are."""

import dataclasses

import numpy as np
import pytest
import torch

from vq_components import DeadCodeRevival, EMAVectorQuantizer, VectorQuantizer

AT_ONCE = DeadCodeRevival(threshold=0.5, decay=0.0)  # dead is who has less than half its fair share in one update
FAR = 1e3


def rows_among(entries, vectors):
    """For each entry whether it is, bit for bit, one of the vectors."""
    return (entries[:, None] == vectors).all(dim=2).any(dim=1)


def shares(pending, codebook):
    """``max(K n_k / N, K d_k / d)``, one vector at a time."""
    counts, distances = np.zeros(len(codebook)), np.zeros(len(codebook))
    for z, indices in pending:
        for vector, k in zip(z.double().numpy(), indices.tolist(), strict=True):
            counts[k] += 1
            distances[k] += np.linalg.norm(vector - codebook[k].double().numpy())
    return len(codebook) * np.maximum(counts / counts.sum(), distances / distances.sum())


def with_far_entries(quantizer, count):
    """The first ``count`` entries are where no vector ever is."""
    codebook = torch.randn(quantizer.codebook.shape)
    codebook[:count] = FAR + torch.arange(count)[:, None]
    quantizer.set_codebook_(codebook)
    return codebook


@pytest.mark.parametrize("kind", [VectorQuantizer, EMAVectorQuantizer])
@pytest.mark.parametrize("mode", ["lazy", "manual", "hooked"])
def test_far_entries_come_to_the_data_and_stay(kind, mode):
    """Defect 2: the update that revives an entry must not overwrite it, nor may a later one pull it back."""
    quantizer = kind(64, 4, commitment_weight=0.25)
    with_far_entries(quantizer, 60)
    encoder = torch.nn.Linear(4, 4)
    optimizer = torch.optim.Adam([*encoder.parameters(), *quantizer.parameters()], lr=1e-3)
    if mode == "hooked":
        quantizer.update_after(optimizer)
    nearby = []
    for _ in range(100):
        out = quantizer(torch.tanh(encoder(torch.randn(500, 4))))
        optimizer.zero_grad()
        (out.loss + out.quantized.square().mean()).backward()
        optimizer.step()
        if mode == "manual":
            quantizer.update_()
        nearby.append(int((quantizer.codebook.detach().abs().amax(dim=1) < 5).sum()))
    assert nearby[0] == 4
    assert nearby[-1] == 64
    assert nearby == sorted(nearby)  # who has come stays
    assert out.terms["usage"] > 0.6


@pytest.mark.parametrize("kind", [VectorQuantizer, EMAVectorQuantizer])
def test_without_revival_far_entries_stay_bit_for_bit(kind):
    quantizer = kind(16, 4, revival=None)
    codebook = with_far_entries(quantizer, 10)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1)), *quantizer.parameters()], lr=0.1)
    for _ in range(150):
        quantizer(torch.randn(100, 4)).loss.backward() if kind is VectorQuantizer else quantizer(torch.randn(100, 4))
        optimizer.step()
        optimizer.zero_grad()
        quantizer.update_()
    assert torch.equal(quantizer.codebook[:10], codebook[:10])
    assert not torch.equal(quantizer.codebook[10:], codebook[10:])


def test_the_dead_become_vectors_of_the_batch_and_the_others_stay(build):
    """Of a codebook that is trained by gradient; averages move the others, too."""
    quantizer = build(revival=AT_ONCE)
    codebook = with_far_entries(quantizer, 10)
    z = torch.randn(300, 4)
    indices = quantizer(z).indices
    dead = torch.from_numpy(shares([(z, indices)], codebook) < 0.5)
    assert 10 <= dead.sum() < 16
    quantizer.update_()
    entries = quantizer.codebook.detach()
    assert rows_among(entries[dead], z).all()
    assert len(entries.unique(dim=0)) == 16
    if isinstance(quantizer, VectorQuantizer):
        assert torch.equal(entries[~dead], codebook[~dead])
    else:
        assert not rows_among(entries[~dead], z).any()


def test_a_revived_entry_is_the_candidate_itself_after_the_averages_update():
    """Defect 2: in the update that revives it, and it then goes to the mean of the vectors that choose it."""
    quantizer = EMAVectorQuantizer(16, 4, revival=AT_ONCE, decay=0.99)
    with_far_entries(quantizer, 1)
    quantizer.update_()
    z = torch.randn(300, 4)
    quantizer(z)
    quantizer.update_()
    assert rows_among(quantizer.codebook[:1], z).all()
    indices = quantizer(z).indices
    own = z[indices == 0]
    assert len(own) > 0
    quantizer.revival = None
    quantizer.update_()
    torch.testing.assert_close(quantizer.codebook[0], own.mean(dim=0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [40, 3])  # a forward; two of the latter have fewer vectors than there are entries
def test_usage_is_a_moving_average_of_shares(build, count):
    """Over all pending forwards; 1 at first and after a revival."""
    rule = DeadCodeRevival(threshold=0.2, decay=0.8)
    quantizer = build(revival=rule)
    with_far_entries(quantizer, 3)
    quantizer.update_()
    expected, revivals = np.ones(16), 0
    decay = rule.decay ** min(2 * count / 16, 1)
    for _ in range(25):
        codebook, pending = quantizer.codebook.detach().clone(), []
        for _ in range(2):
            z = torch.randn(count, 4)
            pending.append((z, quantizer(z).indices))
        quantizer.update_()
        expected = decay * expected + (1 - decay) * shares(pending, codebook)
        dead = expected < rule.threshold
        revivals += dead.sum()
        expected[dead] = 1
        np.testing.assert_allclose(quantizer.embedding.usage, expected, rtol=1e-5)
    assert revivals >= 3


@pytest.mark.parametrize(("count", "updates"), [(100, 7), (16, 7), (4, 27)])
def test_by_default_an_unused_entry_is_dead_after_7_vectors_for_each_entry(build, count, updates):
    """``log(threshold) / log(decay)`` of the docs, 6.58, whether they come in large or in small updates."""
    quantizer = build()
    codebook = with_far_entries(quantizer, 1)
    quantizer.update_()
    for update in range(updates):
        assert torch.equal(quantizer.codebook[0], codebook[0]), update
        quantizer(torch.randn(count, 4))
        quantizer.update_()
    assert quantizer.codebook[0].abs().max() < 10


def test_who_stands_for_few_but_far_vectors_or_for_many_near_ones_is_alive(build):
    """Entry 0 has one vector in a hundred, far away; entry 1 is where almost all are; the third has neither share."""
    quantizer = build.func(3, 4, revival=AT_ONCE)
    codebook = torch.tensor([[9.0], [0.0], [-9.0]]).expand(3, 4)
    quantizer.set_codebook_(codebook)
    quantizer.update_()
    z = torch.zeros(100, 4)
    z[0] = 30.0
    z[1] = -9.5
    assert quantizer(z).indices.bincount(minlength=3).tolist() == [1, 98, 1]
    quantizer.update_()
    assert (quantizer.codebook == z[0]).all(dim=1).tolist() == [False, False, True]


def test_where_all_vectors_are_entries_the_counts_alone_decide(build):
    """No distance, no share of it: nothing is divided by zero, and nobody moves for want of a candidate."""
    quantizer = build(revival=AT_ONCE)
    codebook = with_far_entries(quantizer, 0)
    quantizer.update_()
    quantizer(codebook[:12].repeat(2, 1))
    quantizer.update_()
    assert quantizer.embedding.usage.tolist() == pytest.approx([16 / 12] * 12 + [0] * 4)
    torch.testing.assert_close(quantizer.codebook.detach(), codebook)


def test_candidates_are_drawn_in_proportion_to_their_squared_error(build):
    """One dead entry, eight vectors around the live one with squared errors 1 to 8; the last one is masked."""
    quantizer = build.func(2, 4, revival=AT_ONCE)
    codebook = torch.stack([torch.full((4,), FAR), torch.zeros(4)])
    quantizer.set_codebook_(codebook)
    quantizer.update_()
    errors = torch.arange(1.0, 9.0)
    z = torch.nn.functional.normalize(torch.randn(8, 4)) * errors.sqrt()[:, None]
    live = errors < 8
    drawn = torch.zeros(8)
    trials = 1500
    for _ in range(trials):
        quantizer(z, live)
        quantizer.update_()
        drawn += (quantizer.codebook.detach()[0] == z).all(dim=1)
        with torch.no_grad():
            quantizer.codebook.copy_(codebook)
    assert drawn.sum() == trials
    assert drawn[7] == 0
    expected = trials * errors[:7] / errors[:7].sum()
    chi_square = ((drawn[:7] - expected).square() / expected).sum()
    assert chi_square < 22.5  # exceeded by chance once in a thousand times at 6 degrees of freedom
    assert chi_square > 0.3  # and less than this as rarely


def test_vectors_that_are_masked_broken_or_perfect_are_no_candidates(build):
    quantizer = build(revival=AT_ONCE)
    codebook = with_far_entries(quantizer, 14)
    live, masked = torch.randn(3, 4), torch.randn(60, 4)
    z = torch.cat([masked, live, torch.full((5, 4), torch.nan), codebook[14:].repeat(20, 1)])
    mask = torch.arange(len(z)) >= 60
    quantizer(z, mask)
    quantizer.update_()
    entries = quantizer.codebook.detach()
    assert not rows_among(entries, masked).any()
    assert entries.isfinite().all()
    assert rows_among(entries, live).sum() == 3  # more entries are dead than there are candidates
    assert (entries.abs().amax(dim=1) >= FAR).sum() == 11


def test_vectors_of_every_forward_since_the_last_update_are_candidates(build):
    quantizer = build(revival=AT_ONCE)
    with_far_entries(quantizer, 15)
    quantizer.update_()
    batches = torch.randn(5, 60, 4)
    for z in batches:
        quantizer(z)
    quantizer.update_()
    revived = quantizer.codebook.detach()[:15]
    assert rows_among(revived, batches.view(-1, 4)).all()
    assert sum(bool(rows_among(revived, z).any()) for z in batches) >= 3


@pytest.mark.parametrize("off", [None, DeadCodeRevival(threshold=0.0)])
def test_revival_can_be_stopped_and_taken_up_again(build, off):
    quantizer = build(revival=AT_ONCE)
    codebook = with_far_entries(quantizer, 10)
    quantizer.update_()
    quantizer(torch.randn(300, 4))
    quantizer.revival = off  # with candidates pending
    assert quantizer.revival is off
    for _ in range(3):
        quantizer.update_()
        quantizer(torch.randn(300, 4))
    assert torch.equal(quantizer.codebook[:10], codebook[:10])
    quantizer.revival = AT_ONCE  # with no candidates pending
    quantizer.update_()
    assert torch.equal(quantizer.codebook[:10], codebook[:10])
    quantizer(torch.randn(300, 4))
    quantizer.update_()
    assert quantizer.codebook[:10].abs().max() < 10


@pytest.mark.parametrize(("threshold", "decay"), [(1.0, 0.9), (-0.1, 0.9), (0.1, 1.0), (0.1, -0.1), (torch.nan, 0.9)])
def test_settings_out_of_range_are_refused(threshold, decay):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        DeadCodeRevival(threshold=threshold, decay=decay)
    assert str(error.value) == (
        f"DeadCodeRevival needs threshold and decay in [0, 1), but got threshold={threshold}, decay={decay}. "
        f"The threshold is in shares of the fair usage 1 / K."
    )


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DeadCodeRevival().threshold = 0.5
