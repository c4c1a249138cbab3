"""The example of several processes: its length, and a shortened run under torchrun."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "docs" / "examples" / "distributed.py"


def test_the_file_has_at_most_150_lines():
    assert len(FILE.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed")
def test_a_short_run_ends_with_one_codebook_and_a_picture(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(FILE)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [*command, "--steps", "3", "--out", str(tmp_path)], env=environment, capture_output=True, text=True, timeout=150
    )
    assert run.returncode == 0, run.stderr
    first, second, third, *reasons = run.stdout.splitlines()
    assert first == "processes: 2, largest difference between their codebooks: 0"
    assert float(re.fullmatch(r"PSNR on fresh crops: (\S+) dB", second)[1]) > 0
    assert third.startswith("health of the codebook: 32768 vectors, 256 entries: usage ")
    assert reasons
    assert run.stderr.count("training:   0%") == 1  # one progress bar, of process 0
    assert [path.name for path in tmp_path.iterdir()] == ["distributed.png"]
    assert (tmp_path / "distributed.png").read_bytes().startswith(b"\x89PNG")
