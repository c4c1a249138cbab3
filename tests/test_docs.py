"""Every Python block of the documentation runs, and every link between its pages leads somewhere."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [*DOCS, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# A Python block, unless the line before it is the comment that marks what cannot run in a test.
BLOCK = re.compile(r"(?<!<!-- skip -->\n)^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def parametrize_pages(pages):
    return pytest.mark.parametrize("page", pages, ids=[str(page.relative_to(ROOT)) for page in pages])


def anchors(page):
    """The fragments that a page's headings can be linked by."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@parametrize_pages([page for page in DOCS if BLOCK.search(page.read_text(encoding="utf-8"))])
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """In order, the blocks of a page in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text, scope = page.read_text(encoding="utf-8"), {"__name__": page.stem}
    for block in BLOCK.finditer(text):
        lines_before = "\n" * text.count("\n", 0, block.start(1))  # so that a traceback names the page's line
        exec(compile(lines_before + block[1], str(page), "exec"), scope)


@parametrize_pages(PAGES)
def test_relative_links_lead_somewhere(page):
    for link in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        path, _, fragment = link.partition("#")
        if ":" not in path:
            target = (page.parent / path) if path else page
            assert target.exists(), f"{link}: there is no {target}"
            assert not fragment or fragment in anchors(target), f"{link}: {target.name} has no such heading"
