"""README.md: its length, its two commands and its example."""

import re
from pathlib import Path

import vq_components
from vq_components import functional

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_readme_has_at_most_100_lines():
    assert len(README.splitlines()) <= 100


def test_two_commands_install_and_run_everything():
    example, tests = blocks("bash")  # each one line, from which .ci/run takes it
    assert re.fullmatch(r"python -m pip install \S+ && python docs/examples/tokenizer\.py\n", example)
    assert re.fullmatch(r"python -m pip install -e \S+ && python -m pytest\n", tests)


def test_every_name_in_the_table_exists():
    rows = "".join(re.findall(r"^\|.*\|$", README, re.MULTILINE))
    names = set(re.findall(r"`(\w+)", rows))
    assert "VectorQuantizer" in names
    assert not {name for name in names if not hasattr(vq_components, name) and not hasattr(functional, name)}


def test_the_example_is_twelve_lines_that_train():
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) == 12
    scope = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["quantized"].shape == (8, 64, 8, 8)
    assert scope["indices"].shape == (8, 8, 8)
    assert scope["loss"].isfinite()
    assert scope["terms"].keys() >= {"commitment", "codebook", "perplexity", "usage"}
    for parameter in scope["model"].parameters():
        assert parameter.grad.abs().sum() > 0
