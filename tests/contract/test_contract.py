"""The kit applied to every quantizer, wrapper, tokenizer, loss and prior of the package."""

import importlib.util
from pathlib import Path

import pytest

from vq_components.testing import parametrize_with_checks


def load(name):
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"contract_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.subjects()


@pytest.fixture(autouse=True)
def quiet(capfd):
    """The profiler writes to the standard error."""


@parametrize_with_checks(load("quantizers") + load("family"))
def test_quantizer(subject, check):
    check(subject)


@parametrize_with_checks(load("tokenizers"))
def test_tokenizer(subject, check):
    check(subject)


@parametrize_with_checks(load("losses"))
def test_loss(subject, check):
    check(subject)


@parametrize_with_checks(load("priors"))
def test_prior(subject, check):
    check(subject)
