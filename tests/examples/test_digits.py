"""The example of the digits: its split, its baseline, and a shortened run."""

import math
import re
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits


@pytest.fixture(scope="module")
def example(load_example, one_thread):
    return load_example("digits")


def test_is_short(example):
    assert len(Path(example.__file__).read_text(encoding="utf-8").splitlines()) <= 150


def test_split_divides_all_digits_and_is_always_the_same(example):
    (digits, _), (held_out, held_out_labels) = example.load_split()
    rows = example.pixels(torch.cat([digits, held_out]))
    assert len(rows) == len(rows.unique(dim=0)) == 1797  # no two digits are equal, so none is on both sides
    pixels, targets = load_digits(return_X_y=True)
    torch.testing.assert_close(rows.unique(dim=0), torch.from_numpy(pixels).float().unique(dim=0))
    assert len(held_out) == 360
    shares = held_out_labels.bincount() / torch.from_numpy(targets).bincount()
    torch.testing.assert_close(shares, torch.full((10,), 0.2), rtol=0, atol=0.005)  # to the nearest digit
    (digits_again, _), (held_out_again, _) = example.load_split()
    assert torch.equal(digits_again, digits)
    assert torch.equal(held_out_again, held_out)


def test_distortion_keeps_plain_areas_and_range(example):
    black, grey = torch.full((3, 1, 8, 8), -1.0), torch.full((3, 1, 8, 8), 0.5)
    assert torch.equal(example.distort(black), black)  # what comes in from outside is black
    torch.testing.assert_close(example.distort(grey)[:, :, 3:5, 3:5], grey[:, :, 3:5, 3:5])
    digits = example.load_split()[0][0][:50]
    distorted = example.distort(digits)
    assert distorted.shape == digits.shape
    assert distorted.abs().max() <= 1
    assert (distorted != digits).flatten(1).any(dim=1).all()


def slow_bits(known, asked, codes):
    """The same with dictionaries and loops."""

    def observations(tokens, labels):
        for grid, label in zip(tokens.tolist(), labels.tolist(), strict=True):
            for i, j in ((i, j) for i in range(4) for j in range(4)):
                above, left = grid[i - 1][j] if i else None, grid[i][j - 1] if j else None
                yield grid[i][j], [(i, j, label), (i, j, label, above), (i, j, label, above, left)]

    guess = [1 / codes for _ in observations(*asked)]
    for level in range(3):
        counts, best = {}, (math.inf, None)
        for token, contexts in observations(*known):
            counts.setdefault(contexts[level], [0] * codes)[token] += 1
        for alpha in (2.0**power for power in range(-6, 16)):
            new = []
            for (token, contexts), coarse in zip(observations(*asked), guess, strict=True):
                row = counts.get(contexts[level], [0] * codes)
                new.append((row[token] + alpha * coarse) / (sum(row) + alpha))
            best = min(best, (-sum(map(math.log2, new)) / len(new), new))
        guess = best[1]
    return best[0]


def test_counts_equal_slow_ones(example, monkeypatch):
    monkeypatch.setattr(example, "CODES", 3)
    known = torch.randint(3, (200, 4, 4)), torch.randint(2, (200,))
    known[0][:, :, 1:] = known[0][:, :, :-1].where(
        torch.rand(200, 4, 3) < 0.7, known[0][:, :, 1:]
    )  # something to learn
    asked = known[0][150:], known[1][150:]
    known = known[0][:150], known[1][:150]
    bits = example.bits_of_counts(known, asked).item()
    assert bits < math.log2(3) - 0.05
    assert bits == pytest.approx(slow_bits(known, asked, 3), abs=1e-4)  # float32 here, float64 there


def test_short_run_prints_numbers_and_writes_pictures(example, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["digits.py", "--steps", "10", "--out", str(out)])
    example.main()
    names = ["held_out", "reconstructions", "samples", "samples_plain"]
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.png" for name in names]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.iterdir())
    first, *rows = capsys.readouterr().out.splitlines()
    assert all(math.isfinite(float(number)) for number in re.fullmatch(r".*prior (\S+), counts (\S+)", first).groups())
    assert [row.split()[0] for row in rows] == names
    assert float(re.search(r"recognised (\S+)%", rows[0])[1]) > 98  # the judge knows real digits, whatever was trained
