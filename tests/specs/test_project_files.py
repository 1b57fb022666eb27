"""Versions, Python versions and pinned actions in the files around the package."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import rayfuse

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_the_citation_has_the_version_and_license_of_the_package() -> None:
    citation = load_yaml(ROOT / "CITATION.cff")
    assert citation["version"] == rayfuse.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["license"] == project["license"]


def test_ci_runs_on_the_python_versions_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    classifiers = [re.fullmatch(r".* :: Python :: (3\.\d+)", line) for line in project["classifiers"]]
    versions = [found[1] for found in classifiers if found]
    tested = load_yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert tested["python"] == versions
    assert project["requires-python"] == f">={versions[0]}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_actions_by_commit_and_restrict_permissions(path: Path) -> None:
    workflow = load_yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= (360 if path.name == "slow.yml" else 90), name
        for step in job["steps"]:
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step.get("uses", "a/b@" + "0" * 40)), step
