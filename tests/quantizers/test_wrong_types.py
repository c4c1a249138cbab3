"""What is no tensor, no quantizer or no setting where one belongs: the error says so, at once."""

import re

import pytest
import torch
from torch import nn

from vq_components import (
    FSQ,
    EMAVectorQuantizer,
    GroupedQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
)
from vq_components.functional import perplexity


def raises(text, kind=TypeError):
    return pytest.raises(kind, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize("method", ["forward", "encode", "health"])
def test_an_array_or_a_list_of_batches_is_no_tensor(build_any, method):
    quantizer, z = build_any(), torch.randn(3, 4)
    name = type(quantizer).__name__
    for wrong, came in ((z.numpy(), "ndarray"), ((z, z), "tuple")):
        wrong = [wrong] if method == "health" else wrong
        with raises(f"{name} quantizes a tensor, but got {came}. Convert it with torch.as_tensor(...)."):
            getattr(quantizer, method)(wrong)


def test_a_mask_that_is_no_tensor_raises(build_any):
    quantizer = build_any()
    with raises(
        f"{type(quantizer).__name__} takes a bool mask, True where a position is live, but got list. "
        f"Convert numbers that are 1 there with .bool()."
    ):
        quantizer(torch.randn(3, 4), [True, True, False])


def test_what_a_forward_returned_as_a_whole_is_not_decoded(build_any):
    quantizer = build_any()
    output = quantizer(torch.randn(3, 4))
    with raises(
        f"{type(quantizer).__name__} takes a tensor of integer indices, but got QuantizerOutput. "
        f"Of what a quantizer returns, pass the field indices."
    ):
        quantizer.decode(output)
    with raises(
        "perplexity takes a tensor of integer indices, but got QuantizerOutput. "
        "Of what a quantizer returns, pass the field indices."
    ):
        perplexity(output, 16)


@pytest.mark.parametrize("kind", [VectorQuantizer, EMAVectorQuantizer])
def test_settings_of_another_type_raise_before_training(kind):
    quantizer = kind(16, 4)
    for wrong in (True, False, 0.5):
        text = f"revival is a DeadCodeRevival, or None for no revival, but got {wrong!r}. Pass one of them."
        with raises(text):
            kind(16, 4, revival=wrong)
        with raises(text):
            quantizer.revival = wrong
    with raises(
        "estimator is a function (z, entries) -> quantized, but got 'rotate'. "
        "Pass for example vq_components.functional.rotate."
    ):
        kind(16, 4, estimator="rotate")
    with raises("set_codebook_ takes a tensor of entries, but got ndarray. Convert them with torch.as_tensor(...)."):
        quantizer.set_codebook_(torch.randn(16, 4).numpy())


def test_levels_are_a_sequence():
    with raises(
        "FSQ takes a sequence with the number of levels of each channel, but got 8. "
        "Pass for example (8, 8, 8) for three channels."
    ):
        FSQ(8)


@pytest.mark.parametrize(
    ("wrong", "came"), [(nn.Linear(4, 4), "Linear"), (VectorQuantizer, "the class VectorQuantizer"), (4, "int")]
)
def test_parts_are_quantizers(wrong, came):
    text = f"{came}. Pass one, built, such as VectorQuantizer(512, 8)."
    with raises(f"ProjectedQuantizer takes quantizers, but got {text}"):
        ProjectedQuantizer(wrong, 8)
    for kind in (ResidualQuantizer, GroupedQuantizer):
        with raises(f"{kind.__name__} takes quantizers, but got {text}"):
            kind([VectorQuantizer(16, 4), wrong])


@pytest.mark.parametrize("kind", [ResidualQuantizer, GroupedQuantizer])
def test_parts_are_a_sequence(kind):
    with raises(f"{kind.__name__} takes a sequence of quantizers, but got one. Pass a list of them."):
        kind(VectorQuantizer(16, 4))
