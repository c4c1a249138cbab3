"""What the adapter for vector-quantize-pytorch reads from objects, on objects with the attributes of its classes."""

from functools import partial

import pytest
import torch
from torch import nn

from vq_components import testing
from vq_components.testing import QuantizerSubject, vector_quantize_pytorch

BOOK = {"ema_update": True, "learnable_codebook": False, "initted": torch.tensor(True), "sample_codebook_temp": 1.0}
FLAT = {
    "dim": 8,
    "codebook_size": 16,
    "heads": 1,
    "freeze_codebook": False,
    "learnable_codebook": False,
    "has_commitment_loss": True,
    "in_place_codebook_optimizer": None,
}


class Object(nn.Module):
    """Has the attributes that are given."""

    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


class CosineLinear(nn.Module):
    """A projection that is no linear layer of torch."""


def sample(logits, temperature=1.0, stochastic=False):
    return logits


def flat(book=None, **attributes):
    """Of the form of ``VectorQuantize``."""
    sampler = partial(sample, stochastic=attributes.pop("stochastic", False))
    return Object(**FLAT | attributes, _codebook=Object(**BOOK | {"gumbel_sample": sampler} | (book or {})))


def residual(*layers, **attributes):
    """Of the form of ``ResidualVQ``, which has no attribute ``dim``."""
    layers = nn.ModuleList(layers or [flat(), flat()])
    return Object(layers=layers, num_quantizers=len(layers), codebook_dim=8, project_in=nn.Identity(), **attributes)


def grouped(stages, **attributes):
    """Of the form of ``GroupedResidualVQ``, which has no projection of its own."""
    return Object(rvqs=nn.ModuleList([stages, stages]), dim=8, **attributes)


def sim(**attributes):
    """Of the form of ``SimVQ``, of fewer frozen channels than there are."""
    return Object(codebook_size=16, frozen_codebook=torch.zeros(16, 4), codebook=torch.zeros(16, 8), **attributes)


def grid(**attributes):
    """Of the form of ``FSQ`` and its like."""
    return Object(dim=3, codebook_size=60, **attributes)


def dropping(cutoff, multiple=1, layers=3):
    return residual(
        *(flat() for _ in range(layers)),
        quantize_dropout=True,
        quantize_dropout_cutoff_index=cutoff,
        quantize_dropout_multiple_of=multiple,
    )


def read(module):
    return testing.traits_of(module, adapter=vector_quantize_pytorch)


def test_a_plain_one():
    traits = read(flat())
    assert (traits.dim, traits.codebook_size, traits.channel_dim, traits.space) == (8, 16, -1, (1,))
    assert (traits.distance, traits.estimator, traits.index_shape) == ("euclidean", "other", ())
    assert (traits.learns, traits.half, traits.batched_loss) == (True, True, True)
    assert (traits.stochastic, traits.trains_codebook, traits.composite) == (False, False, False)
    assert not traits.starts_from_data
    assert read(flat({"initted": torch.tensor(False)})).starts_from_data


PROJECTED = {
    "linear": flat(project_in=nn.Linear(8, 4)),
    "with a norm": flat(project_in=nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4))),
    "of cosines": grid(project_in=CosineLinear()),
    "before stages": Object(layers=nn.ModuleList([flat(dim=4)]), num_quantizers=1, project_in=nn.Linear(8, 4)),
    "in groups": grouped(Object(layers=nn.ModuleList([flat(dim=2)]), num_quantizers=1, project_in=nn.Linear(4, 2))),
}


@pytest.mark.parametrize("module", PROJECTED.values(), ids=PROJECTED)
def test_a_projection_is_seen(module):
    traits = read(module)
    assert (traits.trains_codebook, traits.learns, traits.half) == (True, False, False)


def test_no_projection_is_seen_where_there_is_none():
    for module in (flat(project_in=nn.Identity()), residual(), grouped(residual()), grid(), sim()):
        assert read(module).half
        assert not read(module).trains_codebook


@pytest.mark.parametrize("name", ["before stages", "in groups", "with a norm"])
def test_channels_are_those_that_go_in(name):
    assert read(PROJECTED[name]).dim == 8


def test_channels_of_others():
    assert read(sim()).dim == read(residual()).dim == read(residual(sim())).dim == 8
    with pytest.raises(TypeError, match="number of channels"):
        read(Object(num_codes=4))


LAYOUTS = {
    "image": (flat(accept_image_fmap=True), 1, (2,)),
    "volume": (flat(accept_3d_fmap=True), 1, (3,)),
    "sequence": (flat(channel_last=False), 1, (1,)),
    "stages of it": (residual(flat(channel_last=False)), 1, (1,)),
    "groups of images": (grouped(residual(), accept_image_fmap=True), 1, (2,)),
    "flag": (sim(channel_first=True), 1, (0, 1, 2, 3)),
    "stages with a flag": (residual(sim(channel_first=True), channel_first=True), 1, (0, 1, 2, 3)),
    "stages with another flag": (residual(grid(), is_channel_first=True), 1, (0, 1, 2, 3)),
    "always": (grid(values_per_latent=[]), 1, (0, 1, 2, 3)),
    "no flag": (grid(channel_first=None), -1, (1,)),
}


@pytest.mark.parametrize(("module", "channel_dim", "space"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(module, channel_dim, space):
    assert (read(module).channel_dim, read(module).space) == (channel_dim, space)


RANDOM = {
    "codes": flat(stochastic=True),
    "codes of stages": residual(flat(stochastic=True)),
    "stages": dropping(0),
    "stages in groups": grouped(dropping(1)),
    "stages by twos": dropping(0, 2),
    "a direction": flat(directional_reparam=True, directional_reparam_variance=0.1),
    "the sum's direction": residual(diveq=True),
    "noise": residual(grid(noise_dropout=0.5)),
    "perturbation": grid(quantize_rate=0.5),
    "vectors for the loss": grid(frac_per_sample_entropy=0.5),
    "entries for the loss": flat(
        has_codebook_orthogonal_loss=True, orthogonal_reg_active_codes_only=False, orthogonal_reg_max_codes=8
    ),
    "a layer": sim(code_transform=nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1))),
}
CERTAIN = {
    "temperature of 0": flat({"sample_codebook_temp": 0.0}, stochastic=True),
    "no cut but the last": dropping(2),
    "all stages at once": dropping(0, 3),
    "a direction without noise": flat(directional_reparam=True, directional_reparam_variance=0.0),
    "all entries for the loss": flat(
        has_codebook_orthogonal_loss=True, orthogonal_reg_active_codes_only=False, orthogonal_reg_max_codes=16
    ),
    "no noise": grid(noise_dropout=0.0, quantize_rate=1.0, frac_per_sample_entropy=1.0),
}


@pytest.mark.parametrize("module", RANDOM.values(), ids=RANDOM)
def test_what_is_drawn_at_random(module):
    assert read(module).stochastic


@pytest.mark.parametrize("module", CERTAIN.values(), ids=CERTAIN)
def test_what_is_not(module):
    assert not read(module).stochastic


def test_who_moves_the_entries():
    still, learnable = {"ema_update": False}, {"ema_update": False, "learnable_codebook": True}
    assert not read(flat(still)).learns
    assert not read(flat(freeze_codebook=True)).learns
    assert not read(grid()).learns
    assert read(sim()).learns
    assert read(flat(learnable, learnable_codebook=True)).learns
    moved = {"directional_reparam": True, "directional_reparam_variance": 0.0, "has_commitment_loss": False}
    by_output = read(flat(learnable, learnable_codebook=True, **moved))
    assert (by_output.learns, by_output.trains_codebook) == (False, True)
    past = read(flat(learnable, route_gradients_to_input=False))
    assert (past.estimator, past.trains_codebook) == ("none", True)
    assert read(residual(flat(route_gradients_to_input=False), diveq=True)).estimator == "other"
    assert read(grid(activation=nn.PReLU())).trains_codebook


def test_losses_of_a_batch():
    active = {"has_codebook_orthogonal_loss": True, "orthogonal_reg_active_codes_only": True}
    for module in (flat(has_codebook_diversity_loss=True), flat(**active), grid(entropy_loss_weight=0.1)):
        assert not read(module).batched_loss
    assert read(grid(entropy_loss_weight=0.0)).batched_loss


def test_sizes_that_differ():
    assert read(residual(flat(codebook_size=4), flat())).codebook_size == 16


@pytest.mark.parametrize(("name", "lack"), [("rand_projs", "no quantized vectors: "), ("level_shapes", "no single")])
def test_what_gives_something_else_is_refused(name, lack):
    with pytest.raises(TypeError, match=f"Object gives {lack}"):
        read(Object(dim=8, codebook_size=16, **{name: ()}))
    with pytest.raises(TypeError, match="no quantized vectors with indices"):
        vector_quantize_pytorch.call(lambda z: z, torch.zeros(2, 5, 8))


@pytest.mark.parametrize("channel_first", [False, True])
def test_stages_and_groups_come_last(channel_first):
    """Signs of the channels: three stages that are one each, in two groups."""

    class Signs(Object):
        def forward(self, z):
            signs = (z > 0).long()
            indices = torch.stack(signs.chunk(2, dim=1 if self.accept_image_fmap else -1))
            return 2.0 * signs - 1, indices

        def get_output_from_indices(self, indices):
            return 2.0 * torch.cat(tuple(indices), dim=1 if self.accept_image_fmap else -1) - 1

    stages = residual(grid(), grid(), grid(), is_channel_first=channel_first)
    module = Signs(rvqs=nn.ModuleList([stages, stages]), dim=6, accept_image_fmap=channel_first)
    subject = QuantizerSubject(module, adapter=vector_quantize_pytorch)
    testing.check_shapes(subject)
    testing.check_layouts(subject)
    testing.check_decode_inverts_forward(subject)


SIZES = {"dim": 8, "codebook_size": 16}
STAGES = {**SIZES, "num_quantizers": 3}
FSQ = {"dim": 8, "groups": 2, "levels": [5, 4, 3], "num_quantizers": 2}
PROJECTS = {"dim": 8, "trains_codebook": True, "learns": False, "half": False}
FIRST = {"dim": 8, "channel_dim": 1}
REAL = [
    ("ResidualVQ", {**STAGES, "codebook_dim": 4}, PROJECTS),
    ("VectorQuantize", {**SIZES, "codebook_dim": 4, "layernorm_after_project_in": True}, PROJECTS),
    ("GroupedResidualVQ", {**STAGES, "codebook_dim": 2, "groups": 2}, {**PROJECTS, "index_shape": (2, 3)}),
    ("GroupedResidualFSQ", FSQ, {**PROJECTS, "index_shape": (2, 2), "codebook_size": 60}),
    ("LFQ", {"codebook_size": 32, "dim": 8, "cosine_sim_project_in": True}, PROJECTS),
    ("VectorQuantize", {**SIZES, "accept_3d_fmap": True}, {**FIRST, "space": (3,)}),
    ("VectorQuantize", {**SIZES, "channel_last": False}, {**FIRST, "space": (1,)}),
    ("SimVQ", {**SIZES, "frozen_codebook_dim": 4}, {"dim": 8, "learns": True, "trains_codebook": False}),
    ("LatentQuantize", {"levels": [5, 5, 8], "dim": 3}, {**FIRST, "dim": 3, "trains_codebook": False}),
    ("ResidualSimVQ", {**STAGES, "channel_first": True}, {**FIRST, "space": (0, 1, 2, 3)}),
    ("VectorQuantize", {**SIZES, "stochastic_sample_codes": True}, {"stochastic": True}),
    ("ResidualVQ", {**STAGES, "quantize_dropout": True}, {"stochastic": True}),
    ("FSQ", {"levels": [5, 4, 3], "preserve_symmetry": True, "noise_dropout": 0.5}, {"stochastic": True}),
    ("LFQ", {"codebook_size": 32, "frac_per_sample_entropy": 0.5}, {"stochastic": True, "batched_loss": False}),
    ("VectorQuantize", {**SIZES, "route_gradients_to_input": False}, {"estimator": "none"}),
]
TOLD_BY_TRAITS = ("shapes", "layouts", "index_range", "deterministic", "input_gradient", "output_moves_no_codebook")


@pytest.mark.parametrize(("name", "settings", "expected"), REAL)
def test_the_real_ones(name, settings, expected):
    peer = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    subject = QuantizerSubject(getattr(peer, name)(**settings), adapter=vector_quantize_pytorch)
    assert {trait: getattr(subject.traits, trait) for trait in expected} == expected
    selected = testing.checks_of(subject)
    for check in TOLD_BY_TRAITS:
        if f"check_{check}" in selected:
            selected[f"check_{check}"](subject)


def test_the_real_one_that_gives_indices_alone():
    peer = pytest.importorskip("vector_quantize_pytorch")
    with pytest.raises(TypeError, match="RandomProjectionQuantizer gives no quantized vectors: "):
        read(peer.RandomProjectionQuantizer(dim=8, codebook_size=16, codebook_dim=4))
