"""A prior that is correct, by choices of its own, passes every check."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vq_components.testing import PriorAdapter, PriorTraits, check_prior


class Convolved(nn.Module):
    """A prior of two tokens' reach, with fixed positions, dropout as a function and values for a dropped class."""

    def __init__(self, vocab_size=7, length=8):
        super().__init__()
        self.tokens, self.classes = nn.Embedding(vocab_size, 16), nn.Embedding(3, 16)
        self.nothing = nn.Parameter(torch.randn(16))
        self.positions = nn.Parameter(torch.randn(length, 16), requires_grad=False)
        self.mix, self.head = nn.Conv1d(16, 16, 2), nn.Linear(16, vocab_size)

    def forward(self, tokens, classes):
        dropped = torch.rand(len(classes), 1) < (0.3 if self.training else 0.0)
        given = torch.where(dropped, self.nothing, self.classes(classes))
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]] + given[:, None]
        x = F.dropout(x, 0.1, self.training)
        return self.head(x + self.mix(F.pad(x.mT, (1, 0))).mT.tanh())


@torch.no_grad()
def sample(module, prompt, new, values, settings):
    training = module.training
    module.eval()
    for _ in range(new):
        logits, temperature = module(prompt, *values)[:, -1], settings.get("temperature", 1.0)
        if temperature == 0:
            chosen = logits.argmax(dim=1, keepdim=True)
        else:
            chosen = (logits / temperature).softmax(dim=1).multinomial(1)
        prompt = torch.cat([prompt, chosen], dim=1)
    module.train(training)
    return prompt


@pytest.mark.parametrize("vocab_size", [2, 3, 7])
def test_prior(vocab_size):
    torch.manual_seed(0)
    traits = PriorTraits(vocab_size=vocab_size, length=8, conditions=lambda batch: (torch.randint(3, (batch,)),))
    adapter = PriorAdapter(
        logits=lambda module, tokens, values: module(tokens, *values), generate=sample, settings=("temperature",)
    )
    refused = {"check_sampling_restores_parts": "it restores the mode of the whole alone"}
    check_prior(Convolved(vocab_size), traits=traits, adapter=adapter, expected_failures=refused)


def test_a_short_prior_is_refused():
    adapter = PriorAdapter(logits=lambda module, tokens, values: module(tokens, *values), generate=sample)
    with pytest.raises(ValueError, match=r"got length=2\. Pass a prior of at least 4 tokens"):
        check_prior(Convolved(7, 2), traits=PriorTraits(vocab_size=7, length=2), adapter=adapter)
