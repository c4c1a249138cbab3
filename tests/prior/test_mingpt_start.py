"""What a transformer starts from, and what an optimizer gets of it."""

import math

import pytest
import torch
from torch import nn

from vq_components import ClassLabel, ConditionalPrior, MinGPT

RESIDUAL = ("attn.proj.weight", "mlp.2.weight")


@pytest.fixture(scope="module")
def started():
    """One whose matrices are large enough for their standard deviations to be measured."""
    torch.manual_seed(0)
    return MinGPT(300, 128, n_layer=8, n_head=4, n_embd=128)


def test_weights_start_from_their_normal_distributions(started):
    matrices = [(name, value) for name, value in started.named_parameters() if value.ndim > 1]
    assert len(matrices) == 3 + 8 * 6
    for name, value in matrices:
        std = 0.02 / math.sqrt(2 * 8) if name.endswith(RESIDUAL) else 0.02
        # The estimate's own deviation is std / sqrt(2 n), with n at least 128 * 128.
        assert value.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * value.numel())), name
        assert abs(value.mean().item()) < 5 * std / math.sqrt(value.numel()), name


def test_biases_start_at_zero_and_normalizations_at_one(started):
    vectors = [(name, value) for name, value in started.named_parameters() if value.ndim == 1]
    assert len(vectors) == 8 * 10 + 2
    for name, value in vectors:
        assert (value == (1 if ".ln" in f".{name}" and name.endswith("weight") else 0)).all(), name


def test_an_untrained_model_knows_nothing(started):
    """Its loss is that of a uniform guess, but for the little that weights of 0.02 do to 128 numbers."""
    tokens = torch.randint(300, (4, 100))
    loss = nn.functional.cross_entropy(started(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(300), abs=0.1)


def test_the_groups_hold_each_parameter_once(build_gpt):
    gpt = build_gpt()
    groups = gpt.parameter_groups(weight_decay=0.3)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    given = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(given) == len(set(given))
    assert set(given) == {id(parameter) for parameter in gpt.parameters()}


def test_only_matrices_of_linear_layers_decay(build_gpt):
    gpt = build_gpt()
    names = {id(parameter): name for name, parameter in gpt.named_parameters()}
    decayed = {names[id(parameter)] for parameter in gpt.parameter_groups(weight_decay=0.1)[0]["params"]}
    layers = ("attn.key", "attn.query", "attn.value", "attn.proj", "mlp.0", "mlp.2")
    assert decayed == {"head.weight"} | {f"blocks.{block}.{layer}.weight" for block in range(2) for layer in layers}


def test_an_optimizer_takes_the_groups_and_decays_the_first(build_gpt):
    """Without a gradient, decay is all that moves a parameter."""
    gpt = build_gpt()
    before = {name: value.clone() for name, value in gpt.named_parameters()}
    for parameter in gpt.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.AdamW(gpt.parameter_groups(weight_decay=0.5), lr=0.1).step()
    for name, value in gpt.named_parameters():
        linear = value.ndim == 2 and name != "tok_emb.weight"
        torch.testing.assert_close(value, before[name] * (0.95 if linear else 1.0))


@pytest.mark.parametrize(("k", "d", "first"), [(6, 3, 0), (6, 8, 5), (11, 5, 0), (2, 1, 9)])
def test_a_started_embedding_keeps_the_codebooks_distances_up_to_a_factor(build_gpt, k, d, first):
    gpt = build_gpt()
    codebook = 7 * torch.randn(k, d, dtype=torch.float64) + 30
    gpt.start_embedding_(codebook, first_token=first)
    rows = gpt.tok_emb.weight.detach()[first : first + k]
    wanted, got = torch.pdist(codebook), torch.pdist(rows)
    torch.testing.assert_close(got / got[0], wanted / wanted[0])
    torch.testing.assert_close(rows.mean(dim=0), torch.zeros(8, dtype=torch.float64))
    assert rows.square().mean().sqrt().item() == pytest.approx(0.02)


def test_a_started_embedding_changes_the_named_rows_alone(build_gpt):
    gpt = build_gpt()
    before = {name: value.clone() for name, value in gpt.state_dict().items()}
    gpt.start_embedding_(torch.randn(4, 3), first_token=2)
    changed = (gpt.tok_emb.weight != before["tok_emb.weight"]).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [2, 3, 4, 5]
    assert [name for name, value in gpt.state_dict().items() if not torch.equal(value, before[name])] == [
        "tok_emb.weight"
    ]
    assert gpt.tok_emb.weight.requires_grad
    assert gpt.tok_emb.weight.is_leaf


def test_a_wide_codebook_is_projected_by_orthonormal_columns(build_gpt):
    """A codebook of unit vectors shows the projection itself: its columns are orthogonal and equally long."""
    gpt = build_gpt(vocab_size=40)
    entries = torch.cat([torch.eye(20), -torch.eye(20)]).double().requires_grad_()
    gpt.start_embedding_(entries)
    projection = gpt.tok_emb.weight.detach()[:20]
    gram = projection.T @ projection
    torch.testing.assert_close(gram / gram[0, 0], torch.eye(8, dtype=torch.float64))
    assert entries.grad is None


@pytest.mark.parametrize("k", [1, 4])
def test_entries_that_are_all_the_same_start_finite(build_gpt, k):
    gpt = build_gpt()
    gpt.start_embedding_(torch.ones(k, 3))
    assert gpt.tok_emb.weight.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_embedding_starts_in_the_models_type(dtype):
    gpt = MinGPT(16, 4, n_layer=1, n_head=1, n_embd=8).to(dtype)
    gpt.start_embedding_(torch.randn(10, 4))
    assert gpt.tok_emb.weight.dtype == dtype
    assert gpt.tok_emb.weight[:10].float().square().mean().sqrt().item() == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize(("shape", "first"), [((5,), 0), ((12, 2), 0), ((5, 2), 7), ((5, 2), -1), ((1, 5, 2), 0)])
def test_a_codebook_that_does_not_fit_is_an_error(build_gpt, shape, first):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        build_gpt().start_embedding_(torch.zeros(shape), first_token=first)
    assert str(error.value) == (
        f"start_embedding_ takes a codebook (K, D) for tokens from first_token={first} on in a "
        f"vocabulary of 11, but got shape {shape}. Enlarge vocab_size, or lower first_token."
    )


def test_a_prior_has_no_parameters_beside_its_transformers():
    prior = ConditionalPrior(MinGPT(10, 8, n_layer=1, n_head=1, n_embd=4), image_vocab=7, conditions=(ClassLabel(3),))
    assert {name for name, _ in prior.named_parameters()} == {f"gpt.{name}" for name, _ in prior.gpt.named_parameters()}
    assert not list(prior.buffers())
