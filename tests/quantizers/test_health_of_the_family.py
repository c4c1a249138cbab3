"""The health report of quantizers that do not start from data, or learn no entries."""

import math

import pytest
import torch

from vq_components import FSQ, LFQ, GumbelQuantizer, IndexBackpropQuantizer, SimVQ, VectorQuantizer


def test_a_linear_codebook_is_measured_as_any_other():
    torch.manual_seed(0)
    linear, z = SimVQ(12, 3), torch.randn(80, 3) + 1
    plain = VectorQuantizer(12, 3)
    plain.set_codebook_(linear.codebook.detach())
    torch.testing.assert_close(linear.health(z)[:-1], plain.health(z)[:-1])


def test_index_backprop_is_measured_at_the_entries_it_chooses():
    torch.manual_seed(0)
    quantizer, z = IndexBackpropQuantizer(12, 3), torch.randn(80, 3) + 1
    quantizer.set_codebook_(torch.randn(12, 3))
    chosen = quantizer.codebook.detach()[(z @ quantizer.codebook.T).argmax(dim=1)]
    error = (chosen - z).square().sum() / (z - z.mean(dim=0)).square().sum()
    health = quantizer.health(z)
    torch.testing.assert_close(health.error, error.detach())
    torch.testing.assert_close(health.latent_norms[1], z.norm(dim=1).mean())


def test_entries_of_a_gumbel_quantizer_are_not_compared_with_its_input():
    quantizer = GumbelQuantizer(12, 3, in_channels=3)
    quantizer.set_codebook_(torch.randn(12, 3)[torch.arange(12).clamp(max=10)])
    health = quantizer.health(torch.randn(80, 3))
    norms = quantizer.codebook.detach().norm(dim=1)
    torch.testing.assert_close(health.code_norms, torch.stack([norms.min(), norms.mean(), norms.max()]))
    assert health.duplicates == 2
    assert health.error.isnan()
    assert any(
        reason == "2 of 12 entries have another one in the same place: take a smaller codebook."
        for reason in health.reasons
    )
    line = str(health).splitlines()[0]
    assert ", 2 duplicates, norms of entries " in line
    assert "nan" not in line


def test_entries_that_are_chosen_by_their_direction_may_be_short():
    quantizer = IndexBackpropQuantizer(16, 4)
    assert not any("not where the data is" in reason for reason in quantizer.health(torch.randn(600, 4)).reasons)


def test_what_does_not_start_from_data_is_not_advised_to():
    quantizer = SimVQ(16, 4)
    quantizer.set_codebook_(1e-3 * torch.randn(16, 4))
    reason = quantizer.health(100 + torch.randn(600, 4)).reasons[0]
    assert reason.startswith("all codes within radius 0.00")
    assert reason.endswith("Start it from vectors of the data, by set_codebook_().")


@pytest.mark.parametrize(
    ("quantizer", "setting"),
    [(GumbelQuantizer(32, 3, in_channels=5), "raise kl_weight or temperature"), (LFQ(num_bits=5), "diversity_weight")],
    ids=["gumbel", "lfq"],
)
def test_entries_that_are_not_chosen_are_brought_into_use_by_a_setting_of_the_quantizer(quantizer, setting):
    z = 1.0 + 1e-2 * torch.rand(64, 5)  # all on one side of every boundary
    reasons = [reason for reason in quantizer.health(z).reasons if "stand for none" in reason]
    assert len(reasons) == 1
    assert setting in reasons[0]


@pytest.mark.parametrize("quantizer", [FSQ((4, 4, 4)), LFQ(3), SimVQ(8, 3), GumbelQuantizer(8, 3, in_channels=3)])
def test_vectors_that_are_left_out_are_not_counted(quantizer):
    z = torch.randn(50, 3)
    z[:5] = math.nan
    health = quantizer.health(z)
    assert health.counts.sum() == 45
    assert health.reasons[0].startswith("vectors that are NaN, infinite or too large to be squared, and were left out")


@pytest.mark.parametrize("latents", [None, 3])
def test_what_is_no_batch_is_refused(latents):
    with pytest.raises(TypeError, match=r"health takes a batch of latents, or an iterable of batches, but got "):
        SimVQ(8, 3).health(latents)
