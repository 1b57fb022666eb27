"""Check docstrings, messages and docs for phrases that codespell cannot express (see docs/banned_words.txt)."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

BANNED = {
    r"\b(go(es|ing)?|went) on\b": "continue, resume",
    r"\blook(s|ing|ed)? at\b": "inspect, read, process",
    r"\b(one's|someone's|anyone's) own\b|\bof (your|their|its|my) own\b(?! \w)": "custom, separate",
    r"\bbe had\b": "be available",
    r"\b(be|is|are|was|were) let in\b": "be authenticated",
    r"\bwhat comes (of|out)\b": "result",
    r"(?<!\bthere )\b(is|are) no (number|text|file|folder|list|boolean|class|name)\b": "is not a …",
    r"\bso (many|much|long) (seconds|rows|steps|times|time|ago)\b": "the name of the parameter",
    r"\bin place of\b": "instead of",
    r"\b(is|are) (refused|asked)\b": "is rejected, is requested",
    r"\bhistory of items\b": "item sequence",
    r"\bwhole checkpoint\b": "valid checkpoint",
    r"\bwild values?\b": "outlier",
    r"\bon the spot\b": "at run time",
}
"""Regular expression → what to write instead."""

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "platform" / "rayfuse"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
TRAINING_DATA = [PACKAGE / "demo" / "questions.py"]
"""Modules whose strings are everyday English on purpose."""


def texts_of_module(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring, message and comment of a module."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def banned_phrases(text: str) -> list[str]:
    """Return the banned phrases in a text, each with its replacement."""
    text = " ".join(text.split())
    return [
        f"{found.group()!r}: write {instead}"
        for pattern, instead in BANNED.items()
        for found in re.finditer(pattern, text, re.IGNORECASE)
    ]


@pytest.mark.parametrize(
    "room", sorted({path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")})
)
def test_package(room: str) -> None:
    modules = (PACKAGE / room).rglob("*.py") if (PACKAGE / room).is_dir() else [PACKAGE / room]
    problems = [
        f"{path.relative_to(ROOT)}:{line}: {problem}"
        for path in modules
        if path not in TRAINING_DATA
        for line, text in texts_of_module(path)
        for problem in banned_phrases(text)
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents(path: Path) -> None:
    paragraphs = path.read_text().split("\n\n")
    problems = [problem for paragraph in paragraphs for problem in banned_phrases(paragraph)]
    assert not problems, "\n".join(problems)


def test_phrases_across_lines_are_found() -> None:
    assert banned_phrases("The run\n    goes on.") == ["'goes on': write continue, resume"]
    assert not banned_phrases("The run continues.")


def test_docstrings_are_no_relative_clauses() -> None:
    relative = re.compile(r'^\s*"""(What|How|Where|Whether|Which|Who) ', re.MULTILINE)
    found = [
        f"{path.relative_to(ROOT)}: {match[0].strip()}"
        for path in sorted((ROOT / "platform").rglob("*.py"))
        for match in relative.finditer(path.read_text())
    ]
    assert not found
