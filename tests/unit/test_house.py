"""Conventions of the repository that no linter checks."""

import platform
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rayfuse.extras import EXTRAS


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def distributions() -> Mapping[str, list[str]]:
    """Return the distributions of each importable module."""
    return metadata.packages_distributions()


def test_platform_is_the_standard_librarys(root: Path) -> None:
    assert not (root / "platform/__init__.py").exists(), "it would shadow the standard library's platform"
    assert platform.python_version()


def test_platform_is_the_standard_librarys_in_the_repository_root(root: Path) -> None:
    subprocess.run([sys.executable, "-c", "import platform; platform.machine()"], cwd=root, check=True)


def expanded(project: dict, extra: str) -> set[str]:
    """Return the distributions that an extra names, itself or through another extra."""
    names = set()
    for line in project["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name == "rayfuse":
            names |= {name for inner in requirement.extras for name in expanded(project, inner)}
        else:
            names.add(canonicalize_name(requirement.name))
    return names


def test_the_core_and_the_endpoint_stay_light(project: dict) -> None:
    core = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    assert not core & {"torch", "ray", "mlflow", "transformers", "deepspeed", "numpy", "pandas"}
    assert not expanded(project, "serve") & {"deepspeed", "mlflow", "torch"}
    assert "torch" not in expanded(project, "train")


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_extra_is_recognised_by_every_module_it_brings(
    project: dict, distributions: Mapping[str, list[str]], extra: str
) -> None:
    known = {canonicalize_name(name) for module in EXTRAS[extra] for name in distributions[module]}
    assert expanded(project, extra) <= known | {"mlflow-skinny"}


def test_constraints_pin_all_that_the_extras_install(root: Path) -> None:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {canonicalize_name(Requirement(line).name) for line in lines}
    assert all("==" in line and "+" not in line for line in lines)
    assert lines == sorted(lines)
    assert needed("rayfuse[tune,serve,demo,docs,dev]") - {"rayfuse"} <= pinned


def needed(first: str) -> set[str]:
    """Return all distributions that `first` depends on and that are installed here."""
    todo, seen = [Requirement(first)], set()
    while todo:
        requirement = todo.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        for line in metadata.requires(requirement.name) or []:
            inner = Requirement(line)
            extras = requirement.extras or {""}
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(inner)
    return {name for name, _ in seen}
