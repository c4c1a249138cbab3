"""The adapters for other packages, on objects that are called as theirs are, right and wrong."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vq_components import MinGPT, VectorQuantizer, generate, testing
from vq_components.testing import CheckFailure, PriorSubject, QuantizerTraits, TokenizerSubject, TokenizerTraits

SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 16}


def likelihood(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Original(nn.Module):
    """``(logits, loss)``, sampled by a function of its module."""

    def __init__(self):
        super().__init__()
        self.gpt, self.block_size = MinGPT(11, 7, **SIZES), 7
        self.config = SimpleNamespace(vocab_size=11, n_unmasked=0)

    def forward(self, idx, embeddings=None, targets=None):
        logits = self.gpt(idx)
        return logits, None if targets is None else likelihood(logits, targets)


def sample_with_past(x, model, steps, temperature=1.0, sample_logits=True):
    assert not model.training
    temperature = temperature if sample_logits else 0.0
    return generate(model.gpt, x, max_new_tokens=steps, temperature=temperature)[:, x.shape[1] :]


class Causal(nn.Module):
    """Of the form of transformers: a configuration, and keyword arguments."""

    def __init__(self):
        super().__init__()
        self.gpt = MinGPT(11, 7, **SIZES)
        self.config = SimpleNamespace(vocab_size=11, max_position_embeddings=7)

    def forward(self, input_ids, labels=None):
        logits = self.gpt(input_ids)
        loss = None if labels is None else likelihood(logits[:, :-1], labels[:, 1:])
        return SimpleNamespace(logits=logits, loss=loss)

    def generate(self, inputs, *, attention_mask, max_new_tokens, pad_token_id, do_sample, **filters):
        assert attention_mask.shape == inputs.shape
        if not do_sample:
            return generate(self.gpt, inputs, max_new_tokens=max_new_tokens, temperature=0.0)
        return generate(
            self.gpt, inputs, max_new_tokens=max_new_tokens, **filters | {"top_k": filters["top_k"] or None}
        )


class Wrapper(nn.Module):
    """Of the form of x-transformers: filters are functions of logits, in its module."""

    def __init__(self):
        super().__init__()
        self.net, self.max_seq_len = MinGPT(11, 7, **SIZES), 7
        self.net.num_tokens = 11

    def forward(self, x):
        return likelihood(self.net(x[:, :-1]), x[:, 1:])

    @torch.no_grad()
    def generate(self, prompts, seq_len, *, temperature, filter_logits_fn):
        modes, out = [part.training for part in self.modules()], prompts
        self.eval()
        for _ in range(seq_len):
            logits = self.net(out)[:, -1]
            if temperature > 0:
                token = F.softmax(filter_logits_fn(logits) / temperature, dim=-1).multinomial(1)
            else:
                token = logits.argmax(dim=1, keepdim=True)
            out = torch.cat([out, token], dim=1)
        for part, mode in zip(self.modules(), modes, strict=True):
            part.training = mode
        return out[:, prompts.shape[1] :]


def top_k(logits, k):
    return logits.masked_fill(logits < logits.topk(min(k, logits.shape[1])).values[:, -1:], -torch.inf)


def top_p(logits, thres):
    p, order = logits.softmax(dim=1).sort(descending=True)
    dropped = p.cumsum(dim=1) - p >= thres
    return logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def min_p(logits, min_p):
    p = logits.softmax(dim=1)
    return logits.masked_fill(p < min_p * p.amax(dim=1, keepdim=True), -torch.inf)


PRIORS = {"taming_prior": Original, "transformers_prior": Causal, "x_transformers_prior": Wrapper}


@pytest.mark.parametrize("name", PRIORS)
def test_a_right_prior_raises_no_alarm(name):
    torch.manual_seed(0)
    subject = PriorSubject(PRIORS[name](), adapter=getattr(testing, name))
    assert (subject.traits.vocab_size, subject.traits.length) == (11, 7)
    testing.check_prior(subject)


@pytest.mark.parametrize("name", PRIORS)
def test_a_loss_with_other_targets_is_seen(name):
    torch.manual_seed(0)
    adapter = getattr(testing, name)

    def rolled(module, tokens, values):
        return adapter.loss(module, tokens.roll(1, 1), values)

    wrong = dataclasses.replace(adapter, loss=rolled)
    with pytest.raises(CheckFailure, match="the loss is"):
        testing.check_prior_loss(PriorSubject(PRIORS[name](), adapter=wrong))


def test_a_wrong_temperature_is_seen(monkeypatch):
    right = sample_with_past

    def wrong(*args, temperature, **options):
        return right(*args, temperature=1 / temperature, **options)

    monkeypatch.setattr(sys.modules[__name__], "sample_with_past", wrong)
    with pytest.raises(CheckFailure, match=r"temperature=0\.5"):
        testing.check_sampling_distribution(PriorSubject(Original(), adapter=testing.taming_prior))


@pytest.mark.parametrize("wrong", ["top_k", "top_p", "min_p"])
def test_a_filter_that_does_nothing_is_seen(monkeypatch, wrong):
    monkeypatch.setattr(sys.modules[__name__], wrong, lambda logits, *args, **options: logits)
    with pytest.raises(CheckFailure, match=f"generate\\({wrong}="):
        testing.check_sampling_distribution(PriorSubject(Wrapper(), adapter=testing.x_transformers_prior))


def test_dropout_in_samples_is_seen():
    class Dropping(Causal):
        def generate(self, inputs, **options):
            tokens = Causal.generate(self, inputs, **options)
            return torch.where(torch.rand(tokens.shape) < 0.5 * self.training, 0, tokens)

    with pytest.raises(CheckFailure, match="dropout"):
        testing.check_sampling_restores(PriorSubject(Dropping(), adapter=testing.transformers_prior))


def test_lost_modes_are_seen():
    class Losing(Wrapper):
        def generate(self, prompts, seq_len, **options):
            tokens = Wrapper.generate(self, prompts, seq_len, **options)
            self.train(self.training)
            return tokens

    with pytest.raises(CheckFailure, match="modes"):
        testing.check_sampling_restores_parts(PriorSubject(Losing(), adapter=testing.x_transformers_prior))


class Quantize(nn.Module):
    """Flat indices, and a look-up that wants a shape."""

    def __init__(self):
        super().__init__()
        self.embedding, self.vq_embed_dim = nn.Embedding(16, 4), 4
        nn.init.uniform_(self.embedding.weight, -1 / 16, 1 / 16)

    def forward(self, z):
        moved = z.movedim(1, -1)
        indices = torch.cdist(moved.reshape(-1, 4), self.embedding.weight).argmin(dim=1)
        entries = self.embedding(indices).view(moved.shape).movedim(-1, 1)
        loss = (entries - z.detach()).square().mean() + 0.25 * (entries.detach() - z).square().mean()
        return z + (entries - z).detach(), loss, (None, None, indices)

    def get_codebook_entry(self, indices, shape):
        return self.embedding(indices).view(shape).movedim(-1, 1)


class Model(nn.Module):
    """Of the form of diffusers: what encode() returns is not quantized yet."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 32, 2, 2), nn.SiLU(), nn.Conv2d(32, 4, 1))
        self.quantize = Quantize()
        self.decoder = nn.Sequential(nn.Conv2d(4, 32, 1), nn.SiLU(), nn.ConvTranspose2d(32, 3, 2, 2))

    def encode(self, x):
        return SimpleNamespace(latents=self.encoder(x))

    def decode(self, h, force_not_quantize=False):
        return SimpleNamespace(sample=self.decoder(h if force_not_quantize else self.quantize(h)[0]))


TRAITS = TokenizerTraits(image_shape=(3, 8, 8), factor=2, codebook_size=16)


def test_a_right_tokenizer_raises_no_alarm():
    torch.manual_seed(0)
    testing.check_tokenizer(TokenizerSubject(Model(), adapter=testing.diffusers_tokenizer, traits=TRAITS))


def test_a_wrong_look_up_is_seen():
    class Scaled(Quantize):
        def get_codebook_entry(self, indices, shape):
            return 1.1 * Quantize.get_codebook_entry(self, indices, shape)

    model = Model()
    model.quantize = Scaled()
    with pytest.raises(CheckFailure, match="decoded images"):
        testing.check_round_trip(TokenizerSubject(model, adapter=testing.diffusers_tokenizer, traits=TRAITS))


class Wrapped(nn.Module):
    """Around a quantizer whose state has infinities, which stand for candidates that have not come yet."""

    def __init__(self):
        super().__init__()
        self.quantizer = VectorQuantizer(8, 4)

    def forward(self, z):
        return self.quantizer(z)[:3]

    def update_(self):
        self.quantizer.update_()


def test_a_wrapper_that_hands_updates_on_raises_no_alarm():
    testing.check_empty_batch(Wrapped(), traits=QuantizerTraits(dim=4, codebook_size=8))
    testing.check_micro_batches(Wrapped(), traits=QuantizerTraits(dim=4, codebook_size=8, two_phase=True))
