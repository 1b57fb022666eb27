"""Code blocks of a page of the docs, run in order in an empty folder.

    python tests/doc_pages.py docs/quickstart.md      # in an empty folder

Python blocks share their variables, as the cells of a notebook do, and the value of a last expression is printed. Shell
blocks run with bash, and blocks with a title (```yaml title="job.yaml") are written to that file. A ```text block is
the expected output of the block above it. HTML comments are instructions: `<!-- not run -->` and `<!-- not
compared -->` skip the next block, and `<!-- check: EXPRESSION -->` must be true at its place.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MARK = "\x1eblock "
_ITEM = re.compile(
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$"
    r"|^<!-- (?P<comment>not run|not compared|check: .*?) -->$",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_SHELLS = ("sh", "bash")


@dataclass(frozen=True)
class Block:
    """A code block of a page, or a check."""

    kind: str
    """`python`, `sh`, `file`, `text` or `check`."""
    code: str
    """Content of the block, or the expression of a check."""
    line: int
    """Line of the page on which its content starts."""
    title: str = ""
    """Name of the file of a `file`."""


def blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a page that have a meaning for its test."""
    skip = False
    for item in _ITEM.finditer(text):
        line = text.count("\n", 0, item.start()) + 2
        language, title, comment = item["language"], item["title"], item["comment"]
        if comment:
            if comment.startswith("check: "):
                yield Block("check", comment.removeprefix("check: "), line - 1)
            skip = comment in ("not run", "not compared")
            continue
        kind = "file" if title else "sh" if language in _SHELLS else language
        if kind in ("python", "sh", "file", "text") and not skip:
            yield Block(kind, item["code"], line, title or "")
        skip = False


def run_blocks(page: Path) -> None:
    """Run the blocks of a page in this process and the current folder; print a mark before the output of each."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page.read_text()):
        if block.kind == "text":
            continue
        print(f"{_MARK}{block.line}", flush=True)
        if block.kind == "file":
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.code)
        elif block.kind == "sh":
            subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.code], check=True, stderr=subprocess.STDOUT
            )
        elif block.kind == "check":
            assert eval(block.code, names), f"{page}:{block.line}: {block.code}"
        else:
            _run_cell("\n" * (block.line - 1) + block.code, page, names)


def _run_cell(code: str, page: Path, names: dict[str, Any]) -> None:
    """Run the code of a cell, and print the value of its last expression as a notebook does."""
    tree = ast.parse(code, str(page))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(page), "exec"), names)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), str(page), "eval"), names)
        if value is not None:
            print(value)


def run_page(
    page: Path, folder: Path, environment: dict[str, str] | None = None, timeout: float = 1200
) -> str:
    """Run a page as a process in `folder`, check its output blocks, and return its output."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.run(
        [sys.executable, __file__, str(page)],
        cwd=folder,
        env={**os.environ, "PATH": path, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert process.returncode == 0, process.stdout
    for problem in missing_lines(page.read_text(), process.stdout):
        raise AssertionError(f"{page.name}: {problem}\n{process.stdout}")
    return process.stdout


def missing_lines(text: str, output: str) -> Iterator[str]:
    """Yield the lines of output blocks that the block above did not print, in this order.

    Any number matches any other, and `…` matches any text.
    """
    outputs = {int(part.split("\n", 1)[0]): part.partition("\n")[2] for part in output.split(_MARK)[1:]}
    above = 0
    for block in blocks(text):
        if block.kind in ("python", "sh"):
            above = block.line
        elif block.kind == "text":
            printed = iter(outputs.get(above, "").splitlines())
            for expected in filter(str.strip, block.code.splitlines()):
                pattern = _line_pattern(expected)
                if not any(pattern.search(line) for line in printed):
                    yield f"line {block.line}: not in the output: {expected}"
                    return


def _line_pattern(line: str) -> re.Pattern[str]:
    words = (_word_pattern(word) for word in line.split())
    return re.compile(r"\s*" + r"\s+".join(words) + r"\s*$")


def _word_pattern(word: str) -> str:
    parts = (
        _NUMBER.pattern.join(re.escape(text) for text in _NUMBER.split(part)) for part in word.split("…")
    )
    return ".*".join(parts)


if __name__ == "__main__":
    run_blocks(Path(sys.argv[1]).resolve())
