"""The health report against slow counts, and each of its reasons."""

import math

import pytest
import torch
from torch import nn

from vq_components import AbstractQuantizer, CodebookHealth, EMAVectorQuantizer, QuantizerOutput, VectorQuantizer

REVIVE = "revive dead entries (revival=DeadCodeRevival())"


def quantizer_with(codebook):
    quantizer = VectorQuantizer(*codebook.shape, revival=None)
    quantizer.set_codebook_(codebook)
    return quantizer


class TwoStages(AbstractQuantizer):
    """A composite: the second quantizer takes what the first one leaves."""

    def __init__(self, first, second):
        super().__init__(first.dim, codebook_size=first.codebook_size, index_shape=(2,))
        self.stages = nn.ModuleList([first, second])

    def _quantize(self, z, live):
        first = self.stages[0]._quantize(z, live)
        second = self.stages[1]._quantize(z - first.quantized, live)
        indices = torch.stack([first.indices, second.indices], dim=1)
        return QuantizerOutput(first.quantized + second.quantized, indices, first.loss + second.loss, {})

    def _decode(self, indices):
        return sum(stage._decode(column) for stage, column in zip(self.stages, indices.T, strict=True))


class Signs(AbstractQuantizer):
    """A quantizer without a codebook: an entry for each sign."""

    def __init__(self):
        super().__init__(1, codebook_size=2)

    def _quantize(self, z, live):
        indices = (z[:, 0] > 0).long()
        return QuantizerOutput(self._decode(indices), indices, z.sum() * 0, {})

    def _decode(self, indices):
        return 2.0 * indices[:, None] - 1


def slow_numbers(codebook, z):
    """By loops, in float64."""
    codebook, z = codebook.double(), z.double()
    counts, error = [0] * len(codebook), 0.0
    for vector in z:
        distances = [(vector - entry).square().sum().item() for entry in codebook]
        counts[distances.index(min(distances))] += 1
        error += min(distances) / len(z)
    shares = [count / len(z) for count in counts if count]
    norms = [[vector.norm().item() for vector in vectors] for vectors in (codebook, z)]
    return {
        "counts": counts,
        "usage": len(shares) / len(codebook),
        "perplexity": math.exp(-sum(share * math.log(share) for share in shares)),
        "dead": counts.count(0),
        "error": error / z.var(dim=0, correction=0).sum().item(),
        "code_norms": [min(norms[0]), sum(norms[0]) / len(norms[0]), max(norms[0])],
        "latent_norms": [min(norms[1]), sum(norms[1]) / len(norms[1]), max(norms[1])],
    }


def numbers_of(health, names):
    return {name: getattr(health, name).double() for name in names}


def test_numbers_equal_slow_ones():
    codebook, z = torch.randn(12, 3) * 2, torch.randn(80, 3) + 1
    health = quantizer_with(codebook).health(z)
    expected = {name: torch.tensor(v, dtype=torch.float64) for name, v in slow_numbers(codebook, z).items()}
    torch.testing.assert_close(numbers_of(health, expected), expected, rtol=1e-5, atol=1e-6)
    assert expected["dead"] > 0
    assert isinstance(health, CodebookHealth)


@pytest.mark.parametrize("kind", [VectorQuantizer, EMAVectorQuantizer])
def test_a_window_is_its_batches_joined_without_masked_vectors(kind):
    quantizer = kind(8, 3)
    quantizer(torch.randn(50, 3))
    zs, masks = [torch.randn(n, 3, 2) for n in (9, 0, 20)], [torch.rand(n, 2) > 0.4 for n in (9, 0, 20)]
    joined = torch.cat([z.movedim(1, -1)[mask] for z, mask in zip(zs, masks, strict=True)])
    window, expected = quantizer.health(zs, masks), quantizer.health(joined)
    torch.testing.assert_close(window[:-1], expected[:-1])
    assert window.reasons == expected.reasons
    assert quantizer.health(iter(zs)).counts.sum() == 58
    for wrong in (masks[:2], [*masks, masks[0]], masks[0]):
        with pytest.raises(ValueError, match=r"^health takes one mask for each batch of latents, but got more of the"):
            quantizer.health(zs, wrong)


@pytest.mark.parametrize("training", [True, False])
def test_changes_nothing(training):
    quantizer = EMAVectorQuantizer(8, 3)
    quantizer(torch.randn(50, 3))
    quantizer.train(training)
    quantizer.embedding.train()
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    z = torch.randn(50, 3, requires_grad=True)
    health = quantizer.health(z)
    assert not {name for name, tensor in quantizer.state_dict().items() if not torch.equal(tensor, before[name])}
    assert (quantizer.training, quantizer.embedding.training) == (training, True)
    assert not quantizer.embedding._forward_hooks
    assert not any(tensor.requires_grad for tensor in health[:-1])
    with pytest.raises(ValueError, match="quantizes vectors of 3 channels"):
        quantizer.health(torch.randn(50, 4))
    assert (quantizer.training, quantizer.embedding.training) == (training, True)
    assert not quantizer.embedding._forward_hooks


def test_stages_are_told_apart():
    far = torch.randn(8, 3)
    stages = [quantizer_with(far), quantizer_with(far + 100)]
    z = torch.randn(500, 3)
    health = TwoStages(*stages).health(z)
    first = stages[0].health(z)
    second = stages[1].health(z - stages[0].eval()(z).quantized)
    for name in CodebookHealth._fields[:-1]:
        torch.testing.assert_close(getattr(health, name), torch.stack([getattr(h, name) for h in (first, second)]))
    assert not first.reasons
    assert health.reasons == tuple(f"stage 1: {reason}" for reason in second.reasons)
    assert len(str(health).splitlines()) == 2 + len(health.reasons)


def test_without_a_codebook_no_norm_of_an_entry_is_known():
    health = Signs().health(torch.tensor([[1.0], [2.0], [-1.0], [math.nan]]), torch.tensor([True, True, True, False]))
    assert health.counts.tolist() == [1, 2]
    assert health.usage == 1
    assert health.code_norms.isnan().all()
    torch.testing.assert_close(health.latent_norms, torch.tensor([1.0, 4 / 3, 2.0]))
    assert health.error.isnan()
    assert health.reasons == ()
    assert str(health).endswith("\n- nothing is wrong")


def spread_out(size):
    """A healthy codebook and latents around it."""
    codebook = torch.randn(size, 4)
    return codebook, codebook.repeat(20, 1) + 0.05 * torch.randn(20 * size, 4)


def test_a_healthy_codebook_gets_no_reason():
    codebook, z = spread_out(64)
    assert quantizer_with(codebook).health(z).reasons == ()


def test_the_start_of_the_original_is_recognized():
    codebook = torch.zeros(64, 4)
    codebook[:, 0] = torch.linspace(-0.03, 0.03, 64)
    z = torch.zeros(640, 4)
    z[:, 0], z[:, 1] = 16.1, torch.linspace(-0.4, 0.4, 640)
    assert quantizer_with(codebook).health(z).reasons[0] == (
        "all codes within radius 0.03, latents at 16.1: the codebook is not where the data is. "
        'Start it from data (init="data") and revive dead entries (revival=DeadCodeRevival()).'
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda codebook, z: (codebook, torch.cat([z, torch.full((3, 4), math.inf)])),
            "vectors that are NaN, infinite or too large to be squared, and were left out: 3. Look for an overflow "
            "in the encoder, or lower its learning rate.",
        ),
        (
            lambda codebook, z: (codebook, z[:0]),
            "there is no live vector in the window: pass latents, or look at the mask.",
        ),
        (
            lambda codebook, z: (codebook, z[:60]),
            "60 vectors cannot show the use of 64 entries: pass more batches, several vectors per entry.",
        ),
        (
            lambda codebook, z: (codebook, torch.cat([z, z[:1].expand(5000, 4)])),
            "1 of 64 entries stand for half of all 6280 vectors: most of what the encoder gives is the same. "
            "Look for constant areas in the data, or take a smaller codebook.",
        ),
        (
            lambda codebook, z: (torch.cat([codebook[:63], codebook[:1]]), z),
            f"2 of 64 entries have another one in the same place: {REVIVE}, or take a smaller codebook.",
        ),
        (
            lambda codebook, z: (codebook + 1000 * (torch.arange(64) >= 40)[:, None], z),
            f"24 of 64 entries stand for none of 1280 vectors, where chance would leave 0: {REVIVE}, "
            "or take a smaller codebook.",
        ),
    ],
)
def test_one_thing_wrong_is_one_reason(change, reason):
    codebook, z = change(*spread_out(64))
    if "half of all" in reason:  # one of a hundred is many: more entries, so that one is few
        codebook, z = change(*spread_out(128))
        reason = reason.replace("of 64", "of 128").replace("6280", "7560")
    assert quantizer_with(codebook).health(z).reasons == (reason,)


@pytest.mark.parametrize(
    ("change", "beginning"),
    [
        (lambda codebook, z: (codebook, z * 0 + 1), "all latents lie within 0 of one point at norm 2: the encoder has"),
        (lambda codebook, z: (codebook + 100, z), "all codes beyond radius "),
        (lambda codebook, z: (codebook + 8, z), "the mean squared distance of a vector to its entry is "),
    ],
)
def test_a_codebook_in_another_place_is_the_first_reason(change, beginning):
    codebook, z = change(*spread_out(64))
    assert quantizer_with(codebook).health(z).reasons[0].startswith(beginning)


def test_broken_entries_are_counted():
    codebook, z = spread_out(64)
    quantizer = quantizer_with(codebook)
    with torch.no_grad():
        quantizer.codebook[5] = math.nan
    assert quantizer.health(z).reasons == (
        "entries that are NaN or infinite, and can never be chosen: 1. Load an earlier checkpoint.",
    )


def test_a_codebook_that_waits_for_data_says_so():
    assert VectorQuantizer(8, 4).health(torch.randn(100, 4)).reasons == (
        "the codebook has not been started from data, its entries are still random: run a forward in training mode, "
        "not frozen.",
    )


@pytest.mark.parametrize(("size", "dim"), [(40, 1), (300, 2), (2500, 16)])
def test_duplicates_are_found_wherever_the_codebook_is(size, dim):
    """Exact ones and near ones, far from the origin, across tiles; neighbors of an evenly filled space are none."""
    codebook = torch.rand(size, dim).double() if dim > 1 else torch.linspace(0, 1, size)[:, None].double()
    quantizer = VectorQuantizer(size, dim).double()
    codebook += 50
    quantizer.set_codebook_(codebook)
    exact = (torch.cdist(codebook, codebook) + torch.eye(size) * 9).amin(dim=1)
    own = (codebook - codebook.median(dim=0).values).norm(dim=1).sort().values[9 * size // 10]
    latents = (codebook - codebook.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    spacing = torch.minimum(own, latents) * size ** (-1 / dim)
    alone = quantizer.health(codebook).duplicates
    assert alone == (exact <= 1e-3 * spacing).sum()
    codebook[-3:] = codebook[:3] + 1e-7
    quantizer.set_codebook_(codebook)
    assert quantizer.health(codebook).duplicates == alone + 6


def test_a_few_entries_far_off_make_no_others_look_alike():
    torch.manual_seed(0)
    vq = VectorQuantizer(1024, 8)
    codebook = torch.randn(1024, 8)
    codebook[::5] *= 1e4
    vq.set_codebook_(codebook)
    assert vq.health(torch.randn(4000, 8)).duplicates == 0
    codebook[1::5] = codebook[1] + 1e-6 * torch.randn(205, 8)
    vq.set_codebook_(codebook)
    assert vq.health(torch.randn(4000, 8)).duplicates == 205


def test_duplicates_of_many_entries_on_few_places():
    """Entries that are all alike, that differ in signs, and a chain whose ends are near its middle alone."""
    torch.manual_seed(0)
    signs = torch.cartesian_prod(*(torch.tensor([-1.0, 1.0]) for _ in range(12)))
    chain = torch.cat([torch.rand(1000, 2), torch.tensor([[0.5, 0.5], [0.5 + 9e-6, 0.5], [0.5, 0.5 + 9e-6]])])
    for codebook, least in ((torch.ones(4096, 3), 4096), (signs, 0), (torch.cat([signs, signs[:7]]), 14), (chain, 3)):
        quantizer = VectorQuantizer(*codebook.shape)
        quantizer.set_codebook_(codebook)
        exact = torch.cdist(codebook.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist")
        own = (codebook - codebook.median(dim=0).values).norm(dim=1).sort().values[9 * len(codebook) // 10].double()
        radius = 1e-3 * own * len(codebook) ** (-1 / codebook.shape[1])
        expected = (exact.fill_diagonal_(9).amin(dim=1) <= radius).sum()
        assert quantizer.health(4 * torch.randn(1000, codebook.shape[1])).duplicates == expected
        assert expected >= least


def test_one_entry_far_off_makes_no_others_look_alike():
    codebook = 1e-3 * torch.randn(64, 4)
    codebook[0] = 50
    health = quantizer_with(codebook).health(torch.randn(4000, 4))
    assert health.duplicates == 0


def test_who_revives_is_not_advised_to():
    codebook, z = spread_out(64)
    quantizer = VectorQuantizer(64, 4)
    quantizer.set_codebook_(torch.cat([codebook[:32], codebook[:32]]))
    assert quantizer.health(z).reasons[-1] == (
        "64 of 64 entries have another one in the same place: train on, since dead entries are revived, "
        "or take a smaller codebook."
    )
    quantizer.set_codebook_(1e-3 * codebook)
    assert ": the codebook is not where the data is. Train on: " in quantizer.health(z).reasons[0]
