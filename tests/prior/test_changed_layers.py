"""Transformers that someone has changed, sampled from: what :meth:`forward` does is what is sampled."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from vq_components import generate


class LowRank(nn.Linear):
    """A linear layer with a trained addition of rank 1, as adapters do it."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=layer.weight.dtype)
        self.load_state_dict(layer.state_dict())
        self.down, self.up = (
            nn.Parameter(torch.randn(1, width, dtype=layer.weight.dtype)) for width in layer.weight.shape[::-1]
        )

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up


class Wrapper(nn.Module):
    """A module around a layer, which hides it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x).roll(1, -1)


class TwiceAsMuch(nn.Module):
    def forward(self, weight):
        return 2 * weight.roll(1)


def replace(make):
    def change(gpt, owner, name):
        setattr(owner, name, make(getattr(owner, name)))

    return change


def hook(gpt, owner, name):
    getattr(owner, name).register_forward_hook(lambda module, inputs, output: output.roll(1, -1))


def pre_hook(gpt, owner, name):
    getattr(owner, name).register_forward_pre_hook(lambda module, inputs: (inputs[0].roll(1, -1),))


def parametrization(gpt, owner, name):
    nn.utils.parametrize.register_parametrization(getattr(owner, name), "weight", TwiceAsMuch())


def weight_norm(gpt, owner, name):
    parametrizations.weight_norm(getattr(owner, name))
    with torch.no_grad():
        getattr(owner, name).parametrizations.weight.original0.normal_()


def own_forward(gpt, owner, name):
    """What accelerate's hooks do."""
    layer = getattr(owner, name)
    forward = layer.forward
    layer.forward = lambda x: forward(x).roll(1, -1)


CHANGES = {
    "subclass": replace(LowRank),
    "wrapper": replace(Wrapper),
    "hook": hook,
    "pre_hook": pre_hook,
    "parametrization": parametrization,
    "weight_norm": weight_norm,
    "own_forward": own_forward,
}
PLACES = {
    "query": lambda gpt: (gpt.blocks[1].attn, "query"),
    "proj": lambda gpt: (gpt.blocks[0].attn, "proj"),
    "expand": lambda gpt: (gpt.blocks[1].mlp, "0"),
    "contract": lambda gpt: (gpt.blocks[0].mlp, "2"),
    "head": lambda gpt: (gpt, "head"),
}


@pytest.fixture
def assert_sampled_as_computed(monkeypatch):
    """Compares the logits of each step with :meth:`forward` on all: tokens alone would hide small differences."""

    def check(gpt, batch=2):
        tokens, seen = torch.randint(11, (batch, 10)), []

        def choose(self, logits, uniform):
            seen.append(logits)
            return tokens[:, len(seen)]

        monkeypatch.setattr("vq_components.prior._sampling.Sampling.choose", choose)
        generate(gpt, tokens[:, :1], max_new_tokens=9)
        with torch.no_grad():
            expected = gpt(tokens[:, :9])
        torch.testing.assert_close(torch.stack(seen, dim=1), expected, rtol=1e-10, atol=1e-11)  # float64

    return check


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_linear_layer_is_what_samples(build_gpt, assert_sampled_as_computed, change, place):
    gpt = build_gpt()
    tokens = torch.randint(11, (2, 9))
    before = gpt(tokens)
    CHANGES[change](gpt, *PLACES[place](gpt))
    assert not torch.allclose(gpt(tokens), before)
    assert_sampled_as_computed(gpt)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(approximate="tanh")])
def test_another_activation_is_what_samples(build_gpt, assert_sampled_as_computed, activation):
    """Also one of the same class with other settings."""
    gpt = build_gpt()
    for block in gpt.blocks:
        block.mlp[1] = activation
    assert_sampled_as_computed(gpt)


def test_more_layers_in_the_perceptron_are_what_samples(build_gpt, assert_sampled_as_computed):
    gpt = build_gpt()
    for block in gpt.blocks:
        block.mlp.append(nn.Linear(8, 8).double())
    assert_sampled_as_computed(gpt)


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 16, 17])
@pytest.mark.parametrize("vocab_size", [11, 14, 16])
def test_batches_of_any_size_are_sampled_as_computed(build_gpt, assert_sampled_as_computed, batch, vocab_size):
    """A few sequences go a faster way."""
    assert_sampled_as_computed(build_gpt(vocab_size=vocab_size), batch)


@pytest.mark.parametrize("names", [("query",), ("key",), ("query", "key", "value"), ("proj",)])
def test_linear_layers_without_bias_are_sampled_as_computed(build_gpt, assert_sampled_as_computed, names):
    gpt = build_gpt()
    for block in gpt.blocks:
        block.mlp[2].bias = None
        for name in names:
            getattr(block.attn, name).bias = None
    assert_sampled_as_computed(gpt)


def test_changes_between_samples_are_seen(build_gpt, assert_sampled_as_computed):
    """Nothing of the weights is kept from one call to the next."""
    gpt = build_gpt()
    assert_sampled_as_computed(gpt)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.normal_()
    assert_sampled_as_computed(gpt)


class Doubled(torch.Tensor):
    """A weight with a product of its own, as quantized weights have."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        return 2 * result if function is nn.functional.linear else result


def test_a_weight_of_another_class_is_used_in_its_own_way(build_gpt, assert_sampled_as_computed):
    gpt = build_gpt()
    gpt.head.weight = nn.Parameter(gpt.head.weight.detach().as_subclass(Doubled))
    assert_sampled_as_computed(gpt)
