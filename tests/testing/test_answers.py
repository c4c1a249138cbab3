"""Answers without an adapter: what is meant is found, and what could be several things is refused."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vq_components.testing import (
    CheckFailure,
    QuantizerTraits,
    check_compile,
    check_loss_value,
    check_output_is_an_entry,
    check_quantizer_call,
    check_shapes,
)


@dataclass
class Answer:
    z_q: torch.Tensor
    codes: torch.Tensor
    vq_loss: torch.Tensor
    perplexity: torch.Tensor


class Lookup(nn.Module):
    """As many entries as channels, so that one-hot rows have the shape of vectors."""

    def __init__(self, form):
        super().__init__()
        self.embedding = nn.Embedding(8, 8)
        self.form = form

    def forward(self, z):
        flat = z.movedim(1, -1)
        distances = torch.cdist(flat.reshape(-1, 8), self.embedding.weight)
        indices = distances.argmin(dim=1)
        quantized = self.embedding(indices).view_as(flat).movedim(-1, 1)
        losses = (quantized - z.detach()).square() + 0.25 * (quantized.detach() - z).square()
        quantized, indices = z + (quantized - z).detach(), indices.view(flat.shape[:-1])
        return self.form(z, distances, quantized, indices, losses)


def perplexity(indices):
    return torch.exp(torch.special.entr(F.one_hot(indices.flatten(), 8).float().mean(dim=0)).sum())


FORMS = {
    "distances first": lambda z, d, q, i, loss: {
        "distances": d, "quantize": q, "loss": loss.mean(), "encoding_indices": i
    },
    "encoder's output first": lambda z, d, q, i, loss: (z * 1.0, q, i, loss.mean()),
    "encoder's output named": lambda z, d, q, i, loss: {"z_e": 2 * z, "z_q": q, "indices": i, "loss": loss.mean()},
    "dataclass": lambda z, d, q, i, loss: Answer(q, i, loss.mean(), perplexity(i)),
    "dict": lambda z, d, q, i, loss: {"zq": q, "ids": i, "commit_loss": loss.mean(), "ppl": perplexity(i)},
    "entropy loss": lambda z, d, q, i, loss: {"zq": q, "ids": i, "entropy_loss": loss.mean()},
    "one-hot integers": lambda z, d, q, i, loss: (loss.mean(), q, (F.one_hot(i, 8), i)),
    "counts first": lambda z, d, q, i, loss: {
        "counts": torch.bincount(i.flatten(), minlength=8), "quantized": q, "indices": i, "loss": loss.mean()
    },
    "one-hot": lambda z, d, q, i, loss: (q, loss.mean(), (perplexity(i), F.one_hot(i.flatten(), 8).float(), i)),
}  # fmt: skip
TRAITS = QuantizerTraits(
    dim=8, codebook_size=8, distance="euclidean", commitment_weight=0.25, codebook_weight=1.0, half=False
)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_meant_is_found(form):
    quantizer = Lookup(FORMS[form])
    for check in (check_quantizer_call, check_shapes, check_output_is_an_entry, check_loss_value, check_compile):
        check(quantizer, traits=TRAITS)


REFUSED = {
    "two outputs": (
        lambda z, d, q, i, loss: (2 * z, q, i, loss.mean()),
        r"quantized vectors for \(4, 8\) may be any of 0 torch.float32 \(4, 8\), 1 torch.float32 \(4, 8\): "
        "pass an adapter",
    ),
    "a loss of each image": (
        lambda z, d, q, i, loss: (q, i, loss.flatten(1).mean(dim=1)),
        r"2 torch.float32 \(4,\) is no single number, and there is no other loss: reduce it, or pass",
    ),
    "a loss of each value": (
        lambda z, d, q, i, loss: {"quantized": q, "ids": i, "commit_loss": loss},
        r"commit_loss torch.float32 \(4, 8\) is no single number",
    ),
    "two losses": (
        lambda z, d, q, i, loss: {"z_q": q, "ids": i, "vq_loss": loss.mean(), "commit_loss": loss.mean()},
        "2 single numbers in the answer, vq_loss, commit_loss, may be the loss: pass an adapter",
    ),
    "no indices": (lambda z, d, q, i, loss: (q, loss.mean()), r"no quantized vectors for \(4, 8\), or no indices"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_several_things_is_refused(name):
    form, message = REFUSED[name]
    with pytest.raises(CheckFailure, match=message):
        check_quantizer_call(Lookup(form), traits=TRAITS)


def test_what_cannot_be_read_is_not_said_to_have_no_codebook(recwarn):
    class Unread(nn.Module):
        def __init__(self):
            super().__init__()
            self.entries = nn.Parameter(torch.randn(8, 8))

        def forward(self, z):
            return {"out": z, "loss": self.entries.mean()}

    with pytest.raises(CheckFailure, match="or no indices, in the answer"):
        check_quantizer_call(Unread(), traits=TRAITS)
    assert not recwarn.list
