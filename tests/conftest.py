"""Fixtures that every folder of tests uses."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open

DATA = Path(__file__).parent / "data"
SHARED_WEIGHTS = Path(__file__).parents[2] / "shared" / "weights" / "vgg16_features.safetensors"


class Golden(NamedTuple):
    """One file of reference values, computed by the original modules."""

    args: dict  # the original's constructor arguments
    weights: dict[str, torch.Tensor]  # state_dict of the original module
    tensors: dict[str, torch.Tensor]  # inputs and outputs


@pytest.fixture
def golden():
    """``golden("vqgan")`` reads ``tests/data/vqgan.safetensors``."""

    def load(name: str) -> Golden:
        with safe_open(DATA / f"{name}.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a file is no dict)
            args = json.loads(file.metadata().get("args", "{}"))
        weights = {
            key.removeprefix("weights."): tensors.pop(key) for key in list(tensors) if key.startswith("weights.")
        }
        return Golden(args, weights, tensors)

    return load


@pytest.fixture(scope="session")
def vgg16_weights() -> Path:
    """Path of real VGG16 weights, from ``VQ_COMPONENTS_VGG16``; where there are none, tests that need them skip."""
    path = Path(os.environ.get("VQ_COMPONENTS_VGG16", SHARED_WEIGHTS))
    if not path.is_file():
        pytest.skip("VGG16 weights are not on this machine: set VQ_COMPONENTS_VGG16 to a local file to run this test")
    return path


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)
