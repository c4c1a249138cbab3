"""The health report of quantizers made of quantizers: each part's own numbers, under its own name."""

import pytest
import torch

from vq_components import (
    FSQ,
    CodebookHealth,
    EMAVectorQuantizer,
    GroupedQuantizer,
    GumbelQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
)

DEAD = "16 entries stand for none of 600 vectors, where chance would leave 0: "


def trained(quantizer):
    for _ in range(3):
        quantizer(torch.randn(200, quantizer.dim))
    return quantizer


def assert_is_that_of(health, parts):
    """Every field holds the parts' own ones, one after the other."""
    for name in CodebookHealth._fields[:-1]:
        own = getattr(health, name).flatten(0, health.usage.ndim - 1)
        torch.testing.assert_close(own, torch.stack([getattr(part, name) for part in parts]), equal_nan=True)


def test_a_projection_reports_on_its_own_space():
    quantizer = trained(ProjectedQuantizer(EMAVectorQuantizer(16, 3), 6))
    z = torch.randn(600, 6)
    health, inner = quantizer.health(z), quantizer.quantizer.health(quantizer.project_in(z))
    torch.testing.assert_close(health[:-1], inner[:-1])
    assert health.usage.shape == ()
    assert health.reasons == inner.reasons


@pytest.mark.parametrize("order", [1, -1])
def test_stages_of_different_kinds_are_told_apart(order):
    """Not one's norms for another's: a stage that tells none has none, wherever it is."""
    stages = [EMAVectorQuantizer(16, 4), FSQ((2, 2, 2, 2)), SimVQ(16, 4), VectorQuantizer(16, 4)]
    quantizer = trained(ResidualQuantizer(stages[::order]))
    rest, parts = torch.randn(600, 4), []
    health = quantizer.health(rest)
    for stage in quantizer.quantizers:
        parts.append(stage.health(rest))
        rest = rest - stage.decode(stage.encode(rest)).detach()
    assert_is_that_of(health, parts)
    assert health.error.isnan().tolist() == [False, True, False, False][::order]


def test_groups_of_stages_have_a_place_for_each():
    quantizer = trained(GroupedQuantizer([ResidualQuantizer([VectorQuantizer(16, 2) for _ in "12"]) for _ in "123"]))
    z = torch.randn(600, 6)
    health = quantizer.health(z)
    assert health.counts.shape == (3, 2, 16)
    assert health.code_norms.shape == (3, 2, 3)
    parts = [group.health(piece) for group, piece in zip(quantizer.quantizers, z.split(2, dim=1), strict=True)]
    for name in CodebookHealth._fields[:-1]:
        torch.testing.assert_close(getattr(health, name), torch.stack([getattr(part, name) for part in parts]))
    lines = str(health).splitlines()
    places = ["[0, 0]", "[0, 1]", "[1, 0]", "[1, 1]", "[2, 0]", "[2, 1]"]
    assert [line[:6] for line in lines[:6]] == places


def test_a_reason_begins_with_its_part_alone():
    quantizer = trained(GroupedQuantizer([ResidualQuantizer([VectorQuantizer(16, 2) for _ in "12"]) for _ in "12"]))
    quantizer.quantizers[1].quantizers[0].set_codebook_(1e3 + torch.rand(16, 2))
    reasons = quantizer.health(torch.randn(600, 4)).reasons
    assert reasons[0].startswith("group 1, stage 0: all codes beyond radius ")
    assert all(reason.startswith("group 1, stage ") for reason in reasons)
    flat = trained(GroupedQuantizer([VectorQuantizer(16, 2), VectorQuantizer(16, 2)]))
    flat.quantizers[0].set_codebook_(1e3 + torch.rand(16, 2))
    assert {reason.partition(":")[0] for reason in flat.health(torch.randn(600, 4)).reasons} == {"group 0"}


def test_only_the_stage_that_waits_for_data_says_so():
    first = trained(VectorQuantizer(16, 4))
    reasons = ResidualQuantizer([first, VectorQuantizer(16, 4)]).health(torch.randn(600, 4)).reasons
    assert [reason.partition(",")[0] for reason in reasons] == ["stage 1: the codebook has not been started from data"]


def unprojected(quantizer):
    """In a projection that changes no bit: equal vectors stay equal."""
    projected = ProjectedQuantizer(quantizer, quantizer.dim)
    projected.project_in.load_state_dict({"weight": torch.eye(quantizer.dim), "bias": torch.zeros(quantizer.dim)})
    return projected


@pytest.mark.parametrize(
    ("quantizer", "advice"),
    [
        (FSQ((4, 4)), ""),
        (unprojected(FSQ((4, 4))), ""),
        (GumbelQuantizer(16, 2, in_channels=2), "raise kl_weight or temperature, or "),
    ],
)
def test_what_cannot_be_revived_is_not_advised_to(quantizer, advice):
    collapsed, reason = quantizer.health(torch.full((600, 2), 9.0)).reasons
    assert collapsed.startswith("all latents lie within 0 of one point at norm ")
    assert reason == f"15 of {DEAD}{advice}take a smaller codebook."


def test_a_summary_has_no_numbers_that_are_not_known():
    text = str(FSQ((4, 4)).health(torch.full((600, 2), 9.0))).splitlines()[0]
    assert text == "600 vectors, 16 entries: usage 6.2%, perplexity 1.0, 15 dead, of latents 12.7 / 12.7 / 12.7"


def test_a_stage_for_which_nothing_is_left_is_told_from_a_collapse():
    points = torch.randn(16, 4)
    quantizer = ResidualQuantizer([VectorQuantizer(16, 4, init="uniform") for _ in "12"])
    quantizer.quantizers[0].set_codebook_(points)
    reason = quantizer.health(points.repeat(30, 1)).reasons[0]
    assert reason.startswith("stage 1: all that the stages before leave over lies within 0 of one point at norm 0: ")


def test_a_composite_is_left_as_it_was():
    quantizer = trained(ResidualQuantizer([EMAVectorQuantizer(16, 4), VectorQuantizer(16, 4)], dropout=1.0))
    quantizer.quantizers[0].eval()
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    numbers = torch.get_rng_state()
    quantizer.health(torch.randn(600, 4, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not {name for name, tensor in quantizer.state_dict().items() if not torch.equal(tensor, before[name])}
    assert [stage.training for stage in quantizer.quantizers] == [False, True]
    assert not any(module._forward_hooks for module in quantizer.modules())
