"""What happens in training alone: replaced tokens, dropped conditions; and that a prior learns."""

import math

import pytest
import torch

from vq_components import (
    ClassLabel,
    ConditionalPrior,
    Coordinates,
    MinGPT,
    SpatialTokens,
    StartToken,
    generate,
    generate_windows,
)


@pytest.fixture
def seen(monkeypatch):
    """The sequences that a transformer was given."""
    sequences = []
    features = MinGPT.features

    def spy(self, tokens, **settings):
        sequences.append(tokens)
        return features(self, tokens, **settings)

    monkeypatch.setattr(MinGPT, "features", spy)
    return sequences


LABELS = torch.arange(400) % 3


@pytest.mark.parametrize("pkeep", [0.0, 0.3, 0.9, 1.0])
def test_a_share_of_the_inputs_is_replaced_in_training(build_prior, seen, pkeep):
    """By any image token, the right one among them."""
    prior, tokens = build_prior(pkeep=pkeep).train(), torch.randint(7, (400, 10))
    prior(tokens, (LABELS,))
    inputs = seen[0][:, 1:]
    assert torch.equal(seen[0][:, 0], 7 + LABELS)
    different = (inputs != tokens[:, :-1]).float()
    share = (1 - pkeep) * 6 / 7
    tolerance = 5 * math.sqrt(share * (1 - share) / different.numel())
    assert different.mean().item() == pytest.approx(share, abs=tolerance)
    replaced = inputs[different.bool()]
    assert set(replaced.tolist()) == (set(range(7)) if pkeep < 1 else set())
    assert (inputs >= 0).all()
    assert (inputs < 7).all()


def test_targets_stay_what_they_are(build_prior, seen):
    prior, tokens = build_prior(pkeep=0.2).train(), torch.randint(7, (400, 10))
    out = prior(tokens, (LABELS,))
    likelihood = prior.gpt(seen[0])[..., :7].log_softmax(dim=2).gather(2, tokens[:, :, None])
    torch.testing.assert_close(out.loss, -likelihood.mean().float())


def test_replacing_leaves_the_callers_tokens_alone(build_prior):
    tokens = torch.randint(7, (400, 10))
    before = tokens.clone()
    build_prior(pkeep=0.0, condition_dropout=0.5).train()(tokens, (LABELS,))
    assert torch.equal(tokens, before)


def test_in_evaluation_nothing_is_replaced_or_dropped(build_prior, seen):
    prior, tokens = build_prior(pkeep=0.0, condition_dropout=1.0), torch.randint(7, (400, 10))
    state = torch.get_rng_state()
    prior(tokens, (LABELS,))
    assert torch.equal(seen[0], torch.cat([7 + LABELS[:, None], tokens[:, :-1]], dim=1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("offset", [True, False])
def test_all_conditions_of_an_image_are_dropped_together_but_the_start_token(build_prior, seen, share, offset):
    conditions = (ClassLabel(3), StartToken(), SpatialTokens(5), Coordinates(4))
    prior = build_prior(*conditions, condition_dropout=share, offset=offset, block_size=20).train()
    nothing = 20 if offset else 7
    assert prior.gpt.vocab_size == nothing + 1
    tokens = torch.randint(7, (400, 6))
    prior(tokens, (LABELS, torch.randint(5, (400, 2, 2)), torch.rand(400, 2)))
    prefix = seen[0][:, :8]
    dropped = prefix == nothing
    assert not dropped[:, 1].any()
    assert (prefix[:, 1] == (10 if offset else 0)).all()
    rest = dropped[:, [0, 2, 3, 4, 5, 6, 7]]
    assert torch.equal(rest.any(dim=1), rest.all(dim=1))
    tolerance = 5 * math.sqrt(share * (1 - share) / 400)
    assert rest[:, 0].float().mean().item() == pytest.approx(share, abs=tolerance)
    assert torch.equal(seen[0][:, 8:], tokens[:, :-1])


@pytest.fixture(scope="module")
def trained():
    """A prior of three classes, whose images have tokens 0 1, 2 3 and 4 5; a third of the training is without class."""
    torch.manual_seed(0)
    settings = {"image_vocab": 6, "conditions": (ClassLabel(3),), "condition_dropout": 0.3}
    vocab_size = ConditionalPrior.vocab_size(**settings)
    prior = ConditionalPrior(MinGPT(vocab_size, 16, n_layer=1, n_head=2, n_embd=16), **settings)
    optimizer = torch.optim.AdamW(prior.gpt.parameter_groups(weight_decay=0.01), lr=0.02)
    for _ in range(100):
        labels = torch.randint(3, (32,))
        tokens = 2 * labels[:, None] + torch.randint(2, (32, 9))
        loss = prior(tokens, (labels,)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prior.eval()


def test_a_trained_prior_samples_the_tokens_of_its_condition(trained):
    labels = torch.arange(3).repeat(20)
    samples = generate(trained, max_new_tokens=9, conditions=(labels,), top_p=0.99)
    assert torch.equal(samples // 2, labels[:, None].expand(60, 9))
    grids = generate_windows(
        trained, grid=(4, 5), window=(3, 3), batch_size=60, conditions=(labels,), top_p=0.99, guidance=1.5
    )
    assert torch.equal(grids // 2, labels[:, None, None].expand(60, 4, 5))


def test_a_trained_prior_is_as_sure_as_it_can_be(trained):
    """One bit per token with the class, and both tokens equally likely."""
    labels = torch.arange(3).repeat(20)
    tokens = 2 * labels[:, None] + torch.randint(2, (60, 9))
    assert trained(tokens, (labels,)).bits_per_token.item() == pytest.approx(1, abs=0.1)


def test_without_its_condition_it_samples_all_classes(trained):
    """Guidance 0 is the prior without conditions; an image's first token then says the class of the rest."""
    samples = generate(trained, max_new_tokens=9, conditions=(torch.zeros(100).long(),), guidance=0.0, top_p=0.9)
    classes = samples // 2
    assert set(classes[:, 0].tolist()) == {0, 1, 2}
    assert (classes == classes[:, :1]).float().mean() > 0.9
