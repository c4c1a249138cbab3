"""Fixtures that every folder of tests uses."""

import json
import os
import subprocess
import sys
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


@pytest.fixture(scope="session")
def run_processes(tmp_path_factory):
    """``run_processes(file, world, *args)`` runs ``python file RANK WORLD FOLDER *args`` in so many processes.

    Returns what each of them saved as ``FOLDER/RANK.pt``. None outlives the test, nor waits for more than 180 s.
    """

    def run(file, world, *args):
        if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
            pytest.skip("this build of torch has no gloo")
        folder = tmp_path_factory.mktemp("processes")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if sys.platform == "linux":
            environment["GLOO_SOCKET_IFNAME"] = "lo"
        commands = [[sys.executable, file, str(rank), str(world), str(folder), *args] for rank in range(world)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        processes = [subprocess.Popen(command, env=environment, text=True, **streams) for command in commands]
        try:
            outputs = [process.communicate(timeout=180)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process, output in zip(processes, outputs, strict=True):
            assert process.returncode == 0, output
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]

    return run


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)
