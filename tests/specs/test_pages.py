"""Specs, code, tables and links of README and docs agree with the package."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import rayfuse
from rayfuse.registry.gates import GateContext, parse_gate
from rayfuse.registry.gates import build_gate as build
from rayfuse.registry.versions import ModelVersion
from rayfuse.serving.problems import PROBLEM_TYPES
from rayfuse.spec.job import Job
from rayfuse.spec.kinds import spec_class
from rayfuse.spec.load import validate_spec

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
_BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code(page: Path, language: str) -> list[str]:
    return [content for name, content in _BLOCK.findall(page.read_text()) if name == language]


def complete_specs() -> list[Any]:
    """Return every YAML block that is a complete spec."""
    found = []
    for page in PAGES:
        for block in code(page, "yaml"):
            content = yaml.safe_load(block)
            if isinstance(content, dict) and "kind" in content:
                found.append(pytest.param(content, id=f"{page.name}: {content['kind']}"))
    return found


def _filled(node: Any) -> Any:
    """Return a spec with the defaults of its variables."""
    if isinstance(node, dict):
        return {key: _filled(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value) for value in node]
    return re.sub(r"\$\{\w+(?::-([^}]*))?\}", r"\1", node) if isinstance(node, str) else node


@pytest.mark.parametrize("content", complete_specs())
def test_complete_specs_are_valid(content: dict[str, Any]) -> None:
    spec = validate_spec(_filled(content), spec_class(content["kind"]), "docs")
    assert set(content) <= spec.model_fields_set


def test_python_examples_use_public_names() -> None:
    names = {
        (page.name, node.attr)
        for page in PAGES
        for block in code(page, "python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rayfuse"
    }
    assert names
    assert {(page, name) for page, name in names if name not in dir(rayfuse)} == set()


def test_every_http_problem_is_in_the_table() -> None:
    page = (ROOT / "docs" / "http-api.md").read_text()
    rows = re.findall(r"^\| (\d{3}) \| `([\w-]+)` \|", page, re.MULTILINE)
    assert {kind: int(status) for status, kind in rows} == {
        kind: status for kind, (status, _) in PROBLEM_TYPES.items()
    }


def test_json_examples_are_json() -> None:
    for block in code(ROOT / "docs" / "http-api.md", "json"):
        assert json.loads(block)


def test_figures_of_the_readme_stand_on_the_linked_pages() -> None:
    rows = re.findall(r"^\|(?!---).*\((docs/\w+\.md)\).*\|$", README.read_text(), re.MULTILINE)
    assert len(rows) >= 3
    for line in README.read_text().splitlines():
        if link := re.match(r"^\|.*\((docs/\w+\.md)\)", line):
            figures = re.findall(r"\d+\.\d+", line)
            assert figures
            page = (ROOT / link[1]).read_text()
            assert not [figure for figure in figures if figure not in page], line


def test_custom_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "model-registry.md").read_text()
    [block] = re.findall(r"<!-- custom-gate.*?-->\n```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_gates.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    [option] = re.findall(r"--gate '(\{\"type\": \"my_gates.*\})'", page)
    gate = build(parse_gate(option))
    for ece, passed in ((0.01, True), (0.2, False)):
        candidate = ModelVersion("x", 1, metrics={"test": {"answer/ece": ece}})
        assert gate.evaluate(GateContext(candidate)).passed is passed


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_links_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_the_example_job_of_the_readme_is_short() -> None:
    [block] = code(README, "yaml")
    assert len(block.splitlines()) <= 10
    job = validate_spec(yaml.safe_load(block), Job, "README.md")
    assert job.inputs["photo"].optional
