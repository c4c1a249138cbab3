"""Small models whose weights matter, and the slow versions to compare them with."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vq_components import ClassLabel, ConditionalPrior, MinGPT

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8}


def stir_(module):
    """Weights far from their small start, in float64: then every position and every token changes the logits."""
    module.double().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(std=0.5)
            if "ln" in name and name.endswith("weight"):
                parameter.add_(1)
    return module


@pytest.fixture
def build_gpt():
    """``build_gpt(vocab_size, block_size, **settings)``: a stirred transformer in eval mode."""

    def build(vocab_size=11, block_size=12, **settings):
        return stir_(MinGPT(vocab_size, block_size, **{**SIZES, **settings}))

    return build


@pytest.fixture
def build_prior():
    """``build_prior(*conditions, **settings)``: a stirred prior in eval mode, over 7 image tokens unless told."""

    def build(*conditions, image_vocab=7, block_size=12, n_unmasked=0, gpt=None, **settings):
        conditions = conditions or (ClassLabel(3),)
        numbers = {key: settings[key] for key in ("offset", "condition_dropout") if key in settings}
        vocab_size = ConditionalPrior.vocab_size(image_vocab=image_vocab, conditions=conditions, **numbers)
        model = MinGPT(vocab_size, block_size, n_unmasked=n_unmasked, **{**SIZES, **(gpt or {})})
        return stir_(ConditionalPrior(model, image_vocab=image_vocab, conditions=conditions, **settings))

    return build


@pytest.fixture(scope="session")
def reference():
    """The slow versions of ``tests/reference``: ``reference.gpt``, ``.sampling`` and ``.windows``."""
    modules = {}
    for name in ("gpt", "sampling", "windows"):
        path = Path(__file__).parents[1] / "reference" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"reference_{name}", path)
        modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[name])
    return SimpleNamespace(**modules)


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors here are tiny: a second thread costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
