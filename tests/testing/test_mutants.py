"""The small bugs of tests/benchmarks/mutants are ones of the package as it is: what fits nowhere tests nothing."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "tests/benchmarks/mutants").glob("*.py") if path.name != "run.py")


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_every_mutant_changes_what_the_source_says(file):
    mutants = runpy.run_path(str(file))["MUTANTS"]
    assert len({name for name, *_ in mutants}) == len(mutants)
    for name, path, old, new in mutants:
        source = (ROOT / "src/vq_components" / path).read_text(encoding="utf-8")
        assert old in source, name
        assert old != new, name
