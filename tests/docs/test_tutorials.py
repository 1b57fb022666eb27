"""The quick start and the tutorials run as they are written, each in an empty folder."""

from pathlib import Path

import pytest
from doc_pages import blocks, missing_lines, run_page

DOCS = Path(__file__).parents[2] / "docs"
MAX_QUICKSTART_LINES = 12
PAGES = [
    DOCS / "quickstart.md",
    *(
        path
        for path in sorted((DOCS / "tutorials").glob("*.md"), reverse=True)
        if path.name != "kubernetes.md"
    ),
]
"""tests/k8s/test_tutorial.py runs the page about Kubernetes."""

SLOW = ("missing-inputs", "own-data", "sweep-and-register")
"""Pages that `make slow` runs; other tests run sweeps, and train on the same kinds of data."""


@pytest.mark.ray
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else [])
        for page in PAGES
    ],
)
def test_the_page_runs(page: Path, tmp_path: Path, outside_ray: None) -> None:
    work = tmp_path / "work"
    work.mkdir()
    run_page(page, work, {"XDG_STATE_HOME": str(tmp_path / "state")})


def test_the_quick_start_is_short() -> None:
    text = (DOCS / "quickstart.md").read_text()
    code = max((block.code for block in blocks(text) if block.kind == "python"), key=len)
    assert "rayfuse.train(" in code
    assert len(code.splitlines()) <= MAX_QUICKSTART_LINES


def test_output_blocks_are_compared_with_what_was_printed() -> None:
    text = "```python\nprint(1)\n```\n\n```text\nscore  0.93 of a\nin … s\n```\n"
    assert [block.kind for block in blocks(text)] == ["python", "text"]
    assert not list(missing_lines(text, "\x1eblock 2\nscore 12.5   of a\nin about 3 s\n"))
    [problem] = missing_lines(text, "\x1eblock 2\nscore high of a\nin 3 s\n")
    assert "score  0.93 of a" in problem


def test_comments_are_instructions() -> None:
    text = '<!-- not run -->\n```sh\nrm x\n```\n<!-- check: 1 < 2 -->\n```yaml title="a.yaml"\na: 1\n```\n'
    assert [(block.kind, block.code) for block in blocks(text)] == [("check", "1 < 2"), ("file", "a: 1\n")]
