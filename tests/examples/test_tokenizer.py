"""The example of the photographs: its length, what it writes and says, and that a stopped run ends like any other."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

STEPS = 10


@pytest.fixture
def example(load_example, monkeypatch):
    """The example's module, with tiny batches, frequent checkpoints, and no weights for LPIPS on the machine."""
    module = load_example("tokenizer")

    def without_weights(net):
        raise OSError("There are no weights.\nThis is where they were looked for.")

    monkeypatch.setattr(module.vq, "LPIPSLoss", without_weights)
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 4)
    return module


@pytest.fixture
def run(example, monkeypatch):
    """``run(out, stop_at=None)``: the whole script, killed at the beginning of step ``stop_at``."""

    def main(out, stop_at=None):
        def progress(steps, **_):
            for step in steps:
                if step == stop_at:
                    raise KeyboardInterrupt
                yield step

        monkeypatch.setattr(example, "tqdm", progress)
        monkeypatch.setattr(sys, "argv", ["tokenizer.py", "--steps", str(STEPS), "--out", str(out)])
        example.main()

    return main


def test_the_file_has_at_most_150_lines(example):
    assert len(Path(example.__file__).read_text(encoding="utf-8").splitlines()) <= 150


def test_a_short_run_writes_its_pictures_and_says_what_it_lacks(run, tmp_path, capsys):
    run(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"reconstructions.png", "curves.png", "codebook.png", "tokenizer.safetensors"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Training without LPIPS: There are no weights."
    assert [line.partition(":")[0] for line in lines[1:]] == ["held-out PSNR", "codebook usage on fresh crops"]


@pytest.mark.parametrize("stops", [(3,), (6,), (9,), (5, 9)])
def test_a_stopped_run_ends_like_one_that_was_not(run, example, monkeypatch, tmp_path, stops):
    """Bit for bit, in weights and history, wherever it was between two checkpoints, adversary and revival included."""
    monkeypatch.setattr(example, "evaluate", lambda *_: None)
    for name, stopped_at in (("whole", ()), ("stopped", stops)):
        (tmp_path / name).mkdir()
        for step in stopped_at:
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / name, stop_at=step)
        run(tmp_path / name)
    weights, expected = (load_file(tmp_path / name / "tokenizer.safetensors") for name in ("stopped", "whole"))
    assert weights.keys() == expected.keys()
    assert not {key for key in weights if not torch.equal(weights[key], expected[key])}
    saved, plain = (
        torch.load(tmp_path / name / f"checkpoint-of-{STEPS}.pt", weights_only=True) for name in ("stopped", "whole")
    )
    assert saved["history"] == plain["history"]
    assert saved["history"][-1]["discriminator"] != 0


def test_a_stop_loses_what_came_after_the_last_checkpoint_only(run, example, monkeypatch, tmp_path):
    monkeypatch.setattr(example, "evaluate", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at=7)
    saved = torch.load(tmp_path / f"checkpoint-of-{STEPS}.pt", weights_only=True)
    assert len(saved["history"]) == 4
