"""A prior that is correct, by choices of its own, passes every check."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vq_components.testing import CheckError, PriorAdapter, PriorTraits, check_prior


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


class Masked(nn.Conv2d):
    """Sees what comes before a pixel in its row, and the rows above."""

    def __init__(self, channels, size, *, first):
        super().__init__(channels, channels, size, padding=size // 2)
        mask = torch.ones(size, size)
        mask[size // 2, size // 2 + (not first) :] = 0
        mask[size // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class Raster(nn.Module):
    """A PixelCNN, whose rows begin without a look at the end of the row above."""

    def __init__(self, vocab_size=7, side=6):
        super().__init__()
        self.side, self.tokens = side, nn.Embedding(vocab_size, 16)
        self.first, self.second = Masked(16, 5, first=True), Masked(16, 3, first=False)
        self.head = nn.Conv2d(16, vocab_size, 1)

    def forward(self, tokens):
        length = tokens.shape[1]
        grid = F.pad(tokens, (0, self.side**2 - length)).view(-1, self.side, self.side)
        x = self.first(self.tokens(grid).movedim(-1, 1))
        return self.head(x + self.second(x.relu())).flatten(2).mT[:, :length]


def test_rows_of_a_grid():
    torch.manual_seed(0)
    traits = PriorTraits(vocab_size=7, length=36, predicts_next=False)
    check_prior(Raster(), adapter=lambda module, tokens, values: module(tokens), traits=traits)


def test_a_grid_that_sees_nothing_is_seen():
    torch.manual_seed(0)
    blind = Raster()
    blind.first.mask.zero_()
    traits = PriorTraits(vocab_size=7, length=36, predicts_next=False)
    with pytest.raises(CheckError, match="do not change the logits of the next"):
        check_prior(blind, adapter=lambda module, tokens, values: module(tokens), traits=traits)


@torch.no_grad()
def draw(module, prompt, new, values, settings):
    unknown = settings.keys() - {"temperature", "top_k", "generator"}
    if unknown:
        raise TypeError(f"unexpected {unknown}")
    for _ in range(new):
        logits, temperature = module(prompt, *values)[:, -1], settings.get("temperature", 1.0)
        if settings.get("top_k"):
            least = logits.topk(min(settings["top_k"], logits.shape[1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if temperature == 0:
            chosen = logits.argmax(dim=1, keepdim=True)
        else:
            uniform = torch.rand(len(logits), logits.shape[1], generator=settings.get("generator"))
            noise = -(-uniform.clamp(min=1e-9).log()).log()
            chosen = (logits / temperature + noise).argmax(dim=1, keepdim=True)
        prompt = torch.cat([prompt, chosen], dim=1)
    return prompt


class Steady(Convolved):
    """Without anything that is random."""

    def forward(self, tokens, classes):
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]] + self.classes(classes)[:, None]
        return self.head(x + self.nothing + self.mix(F.pad(x.mT, (1, 0))).mT.tanh())


def test_settings_that_an_adapter_does_not_name_are_not_passed():
    torch.manual_seed(0)
    traits = PriorTraits(vocab_size=7, length=8, conditions=lambda batch: (torch.randint(3, (batch,)),))
    adapter = PriorAdapter(
        logits=lambda module, tokens, values: module(tokens, *values),
        generate=draw,
        settings=("temperature", "top_k", "generator"),
    )
    assert "check_sampling_batch_independence" in check_prior(Steady(), adapter=adapter, traits=traits).passed
