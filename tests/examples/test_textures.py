"""The example of the textures: its cutting of windows, and a shortened run."""

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread


@pytest.fixture(scope="module")
def example(load_example, one_thread):
    return load_example("textures")


def test_is_short(example):
    assert len(Path(example.__file__).read_text(encoding="utf-8").splitlines()) <= 150


def test_windows_are_parts_of_the_grids_that_they_are_said_to_be_from(example):
    grids = torch.arange(3 * 9 * 7).view(3, 9, 7)
    windows, chosen = example.random_windows(grids, 40, 4)
    assert set(chosen.tolist()) == {0, 1, 2}
    for window, number in zip(windows, chosen, strict=True):
        inside, row, column = (int(n) for n in torch.unravel_index(window[0, 0], grids.shape))
        assert inside == number
        assert torch.equal(window, grids[inside, row : row + 4, column : column + 4])


def test_grids_of_an_image_are_together_and_at_all_shifts_within_a_token(example):
    class Mean:
        """A tokenizer whose tokens are the sums of the pixels."""

        @staticmethod
        def encode(images):
            return torch.nn.functional.avg_pool2d(images, 4, divisor_override=1)[:, 0].long()

    images = torch.randint(100, (2, 1, 16, 24)).float()
    grids = example.shifted_grids(Mean, images)
    assert grids.shape == (32, 3, 5)
    for index, (number, y, x) in enumerate((n, y, x) for n in (0, 1) for y in range(4) for x in range(4)):
        assert grids[index, 1, 3] == images[number, 0, y + 4 : y + 8, x + 12 : x + 16].sum()


def test_short_run_writes_its_pictures(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["textures.py", "--steps", "2", "--size", "64", "--out", str(tmp_path / "new")])
    example.main()
    printed = capsys.readouterr().out
    assert printed.count("bits per token never trained on") == 2
    assert printed.count("seams along dimension") == 4
    # Real over generated, two textures side by side; condition, generated and real side by side.
    assert imread(tmp_path / "new" / "textures.png").shape[:2] == (128, 128)
    assert imread(tmp_path / "new" / "photo.png").shape[:2] == (64, 576)
