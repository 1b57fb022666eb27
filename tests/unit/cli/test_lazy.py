"""Lazy imports of the command line; `make figures` measures its startup."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rayfuse.cli import COMMANDS

HEAVY = ("torch", "ray", "mlflow", "transformers", "deepspeed", "peft", "pandas", "numpy", "fastapi")
REPORT = "import json, sys; print(json.dumps(sorted(m for m in sys.modules)), file=sys.stderr)"


def modules_after(*arguments: str) -> set[str]:
    """All modules that a run of the command has imported by its end."""
    code = f"import sys; from rayfuse.cli import main; code = main(); {REPORT}; sys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_the_groups_help_imports_no_verb() -> None:
    modules = modules_after("--help")
    assert not modules & {*HEAVY, "pydantic", "yaml", "rich", "httpx"}
    assert not modules & {target.partition(":")[0] for target, _ in COMMANDS.values()}


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_help_of_a_verb_is_light(verb: str) -> None:
    modules = modules_after(verb, "--help")
    assert not modules & set(HEAVY)
    assert COMMANDS[verb][0].partition(":")[0] in modules


@pytest.mark.parametrize("kind", ["job", "service", "cluster"])
def test_specs_are_read_without_the_heavy_stack(kind: str) -> None:
    modules = modules_after("schema", kind)
    assert "pydantic" in modules
    assert not modules & set(HEAVY)


def test_rendering_for_kubernetes_is_light(root: Path) -> None:
    modules = modules_after(*render(root))
    assert "rayfuse.cluster.manifests" in modules
    assert not modules & {*HEAVY, "lightkube", "httpx", "httpx2", "fsspec", "psutil"}


def render(root: Path) -> list[str]:
    files = [str(root / "serve/digit_arithmetic.yaml"), "--cluster", str(root / "k8s/cluster.yaml")]
    return ["submit", *files, "--render"]
