"""Copied, pickled and compiled: no different."""

import copy
import pickle

import pytest
import torch

from vq_components import ClassLabel, Coordinates, SpatialTokens, StartToken, generate


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def test_a_copy_has_weights_of_its_own(build_gpt):
    gpt, tokens = build_gpt(), torch.randint(11, (2, 6))
    before = gpt(tokens)
    other = copy.deepcopy(gpt)
    assert torch.equal(other(tokens), before)
    assert not {id(parameter) for parameter in gpt.parameters()} & {id(parameter) for parameter in other.parameters()}
    for parameter in other.parameters():
        parameter.data.zero_()
    assert torch.equal(gpt(tokens), before)
    assert (other(tokens) == 0).all()


def test_a_copied_prior_samples_with_its_own_weights(build_prior):
    """Nothing of the original is left in what the samplers use."""
    prior = build_prior()
    other = copy.deepcopy(prior)
    with torch.no_grad():
        other.gpt.head.weight.zero_()
        other.gpt.head.weight[5] = 100 * other.gpt(torch.tensor([[7]]))[0, 0, :1].new_ones(8)
        other.gpt.ln_f.weight.zero_()
        other.gpt.ln_f.bias.fill_(1.0)
    assert (generate(other, max_new_tokens=4, conditions=(torch.tensor([0]),)) == 5).all()
    assert not (generate(prior, max_new_tokens=4, conditions=(torch.tensor([0]),), temperature=0) == 5).all()


@pytest.mark.parametrize("length", [3, 9])
def test_a_pickled_prior_comes_back(build_prior, length):
    conditions = (StartToken(), ClassLabel(3), SpatialTokens(4), Coordinates(5))
    prior = build_prior(*conditions, block_size=20, condition_dropout=0.1)
    other = pickle.loads(pickle.dumps(prior))
    values = (torch.tensor([0, 2]), torch.randint(4, (2, 2, 2)), torch.rand(2, 2))
    tokens = torch.randint(7, (2, length))
    assert torch.equal(other(tokens, values).logits, prior(tokens, values).logits)
    assert other.conditions == conditions


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("n_unmasked", [0, 3])
def test_a_compiled_transformer_is_the_eager_one(build_gpt, training, n_unmasked):
    gpt = build_gpt(n_unmasked=n_unmasked, n_layer=1).train(training)
    embeddings = torch.randn(2, 2, 8, dtype=torch.float64) if n_unmasked else None
    tokens, results = torch.randint(11, (2, 7)), []
    for forward in (gpt, torch.compile(gpt, backend="aot_eager", fullgraph=True)):
        logits = forward(tokens, embeddings=embeddings)
        logits.square().mean().backward()
        results.append([logits, *(parameter.grad for parameter in gpt.parameters())])
        gpt.zero_grad()
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_prior_is_the_eager_one(build_prior, training):
    prior = build_prior(ClassLabel(3), Coordinates(4), condition_dropout=0.5, pkeep=0.5, gpt={"n_layer": 1}).train(
        training
    )
    compiled = torch.compile(prior, backend="aot_eager", fullgraph=True)
    tokens, values = torch.randint(7, (4, 3, 3)), (torch.tensor([0, 1, 2, 0]), torch.rand(4, 2))
    results = []
    for forward in (prior, compiled):
        torch.manual_seed(1)  # aot_eager draws what eager draws
        out = forward(tokens, values)
        out.loss.backward()
        results.append([*out, *(parameter.grad for parameter in prior.parameters())])
        prior.zero_grad()
    torch.testing.assert_close(results[1], results[0])


def test_a_prior_can_be_exported(build_prior):
    prior = build_prior()
    tokens, labels = torch.randint(7, (2, 4)), torch.tensor([0, 2])
    exported = torch.export.export(prior, (tokens, (labels,)), strict=True)
    torch.testing.assert_close(exported.module()(tokens, (labels,)).logits, prior(tokens, (labels,)).logits)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_prior_samples_as_the_eager_one(build_prior, backend):
    prior = build_prior()
    settings = {"max_new_tokens": 6, "conditions": (torch.tensor([0, 2]),)}
    expected = generate(prior, **settings, generator=torch.Generator().manual_seed(3))
    for compiled in (torch.compile(prior, backend=backend), prior):
        prior.train()
        assert torch.equal(generate(compiled, **settings, generator=torch.Generator().manual_seed(3)), expected)
        assert all(module.training for module in compiled.modules())


def test_a_prior_of_a_compiled_transformer_works_and_samples(build_prior):
    prior = build_prior()
    tokens, labels = torch.randint(7, (2, 4)), torch.tensor([0, 2])
    expected = prior(tokens, (labels,)), generate(prior, max_new_tokens=6, conditions=(labels,), temperature=0)
    prior.gpt = torch.compile(prior.gpt, backend="eager")
    out = prior(tokens, (labels,)), generate(prior, max_new_tokens=6, conditions=(labels,), temperature=0)
    torch.testing.assert_close(out, expected)


def test_a_transformer_compiled_inside_of_a_prior_is_what_runs(build_prior):
    """``ConditionalPrior(torch.compile(gpt), ...)`` trains through the compiled code, not around it."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    prior = build_prior()
    prior.gpt = torch.compile(prior.gpt, backend=backend)
    prior(torch.randint(7, (2, 4)), (torch.tensor([0, 2]),))
    assert graphs
