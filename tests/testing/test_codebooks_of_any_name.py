"""A codebook of any name and layout is recognized by what comes out of it, and checked like others."""

import dataclasses
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

from vq_components.testing import (
    CheckError,
    QuantizerAdapter,
    QuantizerSubject,
    QuantizerTraits,
    check_loss_gradients,
    check_quantizer,
)

TRAITS = QuantizerTraits(
    dim=4, codebook_size=16, space=(2,), distance="euclidean", commitment_weight=0.25, codebook_weight=1.0
)


class Codes(nn.Module):
    """The paper's quantizer, with parts to be replaced."""

    beta, half = (0.25, 1.0), 0.5  # of the two terms of the loss; of the norms in the distance

    def __init__(self):
        super().__init__()
        self.other = nn.Parameter(torch.zeros(16, 4), requires_grad=False)
        self.codes = nn.Parameter(self.stored(torch.randn(16, 4)))

    def stored(self, codebook):
        return codebook

    def entries(self):
        return self.codes

    def output(self, z, entries):
        return entries

    def forward(self, z):
        if z.shape[1] != 4:
            raise ValueError(f"expected 4 channels, but got {z.shape[1]}")
        with torch.autocast(z.device.type, enabled=False):
            moved = z.float().movedim(1, -1)
            flat, book = moved.reshape(-1, 4), self.entries()
            score = flat.detach() @ book.detach().T - self.half * book.detach().square().sum(dim=1)
            indices = score.nan_to_num(nan=-torch.inf).argmax(dim=1)
            entries, count = book[indices], max(flat.numel(), 1)
            loss = self.beta[0] * (flat - entries.detach()).square().sum() / count
            loss = loss + self.beta[1] * (entries - flat.detach()).square().sum() / count
            quantized = flat + (self.output(flat, entries) - flat).detach()
        return quantized.view(moved.shape).movedim(-1, 1).to(z.dtype), indices.view(moved.shape[:-1]), loss


LAYOUTS = {
    "rows": {},
    "columns": {"stored": lambda self, book: book.T.contiguous(), "entries": lambda self: self.codes.T},
    "rows of one head": {"stored": lambda self, book: book[None], "entries": lambda self: self.codes[0]},
}
BROKEN = {
    "beta on the wrong term": ("check_loss_gradients", {"beta": (1.0, 0.25)}),
    "half of a sum": ("check_loss_value", {"beta": (0.25, 0.5)}),
    "distance without its half": ("check_nearest_entry", {"half": 1.0}),
}


def built(**parts):
    torch.manual_seed(0)
    return type("Codes", (Codes,), parts)()


def failing(quantizer, traits=TRAITS, **options):
    with pytest.raises(CheckError) as error:
        check_quantizer(quantizer, traits=traits, **options)
    return {failure.check for failure in error.value.failures}, error.value


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_found_and_nothing_is_left_out_of_what_is_declared(layout):
    quantizer = built(**LAYOUTS[layout])
    report = check_quantizer(quantizer, traits=TRAITS)
    assert {"check_nearest_entry", "check_loss_gradients", "check_output_is_an_entry"} <= set(report.passed)
    subject = QuantizerSubject(quantizer, traits=TRAITS)
    assert torch.equal(subject.codebook(quantizer), quantizer.entries())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("what", BROKEN)
def test_what_is_wrong_is_seen(what, layout):
    check, parts = BROKEN[what]
    assert check in failing(built(**LAYOUTS[layout], **parts))[0]


def test_directions_are_enough_for_cosine_codes():
    def cosine(self):
        return nn.functional.normalize(self.codes, dim=1)

    quantizer = built(entries=cosine, stored=lambda self, book: 3 * book)
    traits = QuantizerTraits(dim=4, codebook_size=16, space=(2,), distance="cosine", estimator="straight_through")
    assert "check_nearest_entry" in check_quantizer(quantizer, traits=traits).passed


def test_a_distance_that_cannot_be_checked_is_told():
    blended = built(output=lambda self, z, entries: 0.1 * z + 0.9 * entries)
    with pytest.warns(UserWarning, match=r"distance='euclidean' of Codes is declared but not checked.*codebook=lambda"):
        found, error = failing(blended)
    assert {"check_loss_value", "check_loss_gradients", "check_indices_tell_outputs"} <= found
    assert error.left_out["check_nearest_entry"] == "a codebook: none was found, so the adapter's codebook="


def test_no_warning_where_nothing_is_declared_or_the_adapter_tells():
    blended = built(output=lambda self, z, entries: 0.1 * z + 0.9 * entries)
    adapter = QuantizerAdapter(call=lambda module, z: module(z), codebook=lambda module: module.codes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        QuantizerSubject(blended, traits=QuantizerTraits(dim=4, codebook_size=16, space=(2,)))
        QuantizerSubject(blended, traits=TRAITS, adapter=adapter)
        with pytest.raises(AssertionError, match="values differ"):
            check_loss_gradients(blended, traits=TRAITS, adapter=adapter)


def test_an_object_that_cannot_be_called_is_told_by_its_check():
    class Raising(Codes):
        def forward(self, z):
            raise RuntimeError("not today")

    found, error = failing(Raising())  # without a warning of its codebook
    assert found == {"check_quantizer_call"}
    assert "not today" in str(error)


class Turned(Codes):
    """``(D, K)`` under a name that others give to ``(K, D)``."""

    def __init__(self):
        super().__init__()
        self.codebook = nn.Parameter(self.codes.detach().T.contiguous())
        del self.codes

    def entries(self):
        return self.codebook.T


class Mapped(Codes):
    """One linear map of entries that stay as they are, which have the name that others give to the codebook."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, 4).requires_grad_(False)
        self.map = nn.Linear(4, 4)
        del self.codes

    def entries(self):
        return self.map(self.embedding.weight)


class Shifted(Codes):
    """A codebook of the usual name, of which the entry next to the one that the index names comes out."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(self.codes.detach(), freeze=False)
        del self.codes

    def entries(self):
        return self.embedding.weight

    def forward(self, z):
        quantized, indices, loss = super().forward(z)
        return quantized, (indices + 1) % 16, loss


@dataclasses.dataclass
class Answer:
    z_q: torch.Tensor
    ids: torch.Tensor
    penalty: torch.Tensor


def test_a_usual_name_for_another_layout_raises_no_alarm():
    torch.manual_seed(0)
    assert "check_nearest_entry" in check_quantizer(Turned(), traits=TRAITS).passed


@pytest.mark.parametrize("distance", [None, "euclidean"])
@pytest.mark.filterwarnings("ignore:distance='euclidean' of Mapped is declared but not checked")
def test_a_usual_name_for_something_else_raises_no_alarm(distance):
    torch.manual_seed(0)
    traits = dataclasses.replace(TRAITS, distance=distance)
    report = check_quantizer(Mapped(), traits=traits)
    assert "check_output_is_an_entry" in report.left_out


def test_an_index_of_another_entry_is_seen():
    torch.manual_seed(0)
    assert {"check_output_is_an_entry", "check_nearest_entry"} <= failing(Shifted())[0]


@pytest.mark.parametrize(
    "form",
    [lambda q, i, loss: OrderedDict(z_q=q, ids=i, loss=loss), Answer, lambda q, i, loss: {"a": [i, q], "loss": loss}],
)
def test_answers_of_many_forms_are_read(form):
    def forward(self, z):
        return form(*Codes.forward(self, z))

    report = check_quantizer(built(forward=forward), traits=TRAITS)
    assert {"check_compile", "check_nearest_entry"} <= set(report.passed)


class Heads(nn.Module):
    """Two heads that share one codebook of two channels."""

    def __init__(self):
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(16, 2))

    def forward(self, z):
        if z.shape[1] != 4:
            raise ValueError(f"expected 4 channels, but got {z.shape[1]}")
        with torch.autocast(z.device.type, enabled=False):
            moved = z.float().movedim(1, -1)
            flat, book = moved.reshape(-1, 2), self.codebook
            score = flat.detach() @ book.detach().T - 0.5 * book.detach().square().sum(dim=1)
            indices = score.nan_to_num(nan=-torch.inf).argmax(dim=1)
            entries, count = book[indices], max(flat.numel(), 1)
            loss = 0.25 * (flat - entries.detach()).square().sum() / count
            loss = loss + (entries - flat.detach()).square().sum() / count
            quantized = flat + (entries - flat).detach()
        return quantized.view(moved.shape).movedim(-1, 1).to(z.dtype), indices.view(*moved.shape[:-1], 2), loss


def test_heads_that_share_a_codebook_raise_no_alarm():
    torch.manual_seed(0)
    traits = QuantizerTraits(
        dim=4,
        codebook_size=16,
        space=(2,),
        index_shape=(2,),
        composite=True,
        commitment_weight=0.25,
        codebook_weight=1.0,
    )
    assert "check_loss_gradients" in check_quantizer(Heads(), traits=traits).passed
