"""Check the Dockerfile against the checkout, without building it."""

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "k8s" / "Dockerfile").read_text()
LINES = TEXT.replace("\\\n", " ").splitlines()
COPIED = [
    source
    for line in LINES
    if line.startswith("COPY ") and "--from" not in line
    for source in line.split()[1:-1]
]


@pytest.mark.parametrize("source", COPIED)
def test_copied_files_exist_in_the_build_context(source: str) -> None:
    assert (ROOT / source).exists()
    rules = [rule for rule in (ROOT / ".dockerignore").read_text().splitlines() if not rule.startswith("#")]
    let_in = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    assert "*" in rules
    assert any(fnmatch.fnmatch(source, rule) or source.startswith(f"{rule}/") for rule in let_in)


def test_the_image_does_not_run_as_root() -> None:
    assert [line for line in LINES if line.startswith("USER ")] == ["USER 1000:100"]
    assert not any(line.startswith(("COPY", "RUN")) for line in LINES[LINES.index("USER 1000:100") :])


def test_extras_exist_and_versions_are_pinned() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"EXTRAS=([a-z,]+)", TEXT)
    assert "serve" in named
    assert {extra for some in named for extra in some.split(",")} <= extras.keys()
    assert "PIP_CONSTRAINT=/build/constraints.txt" in TEXT
