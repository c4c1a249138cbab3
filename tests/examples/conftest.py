"""Loads the examples as modules."""

import importlib.util
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture(scope="session")
def load_example():
    """``load_example(name)``: a new module of the example; what it draws needs no display."""
    mpl.use("agg")

    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module")
def one_thread():
    """One thread: what an example computes in its tests is tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
