"""Every spec that we ship loads as the kind of its folder, comes back from its stored form, and pleases an editor."""

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from rayfuse.spec.load import check, load_spec, spec_class
from rayfuse.spec.schema import json_schema

ROOT = Path(__file__).parents[2]
KIND_OF_FOLDER = {"jobs": "job", "tune": "sweep", "serve": "service", "k8s": "cluster"}
SHIPPED = sorted(path for folder in KIND_OF_FOLDER for path in (ROOT / folder).glob("**/*.yaml"))


def kind_of(path: Path) -> str | None:
    """The kind that a shipped file must have; None for manifests of Kubernetes, which are no specs of ours."""
    folder = path.relative_to(ROOT).parts[0]
    if folder == "k8s" and "kind: cluster" not in path.read_text().splitlines():
        return None
    return KIND_OF_FOLDER[folder]


SPECS = [(path, kind) for path in SHIPPED if (kind := kind_of(path))]
NAMES = [str(path.relative_to(ROOT)) for path, _ in SPECS]


def test_the_main_recipe_is_there() -> None:
    assert {"jobs/digit_arithmetic.yaml", "serve/digit_arithmetic.yaml"} <= set(NAMES)


@pytest.mark.parametrize(("path", "kind"), SPECS, ids=NAMES)
def test_it_loads_without_any_variable_set(path: Path, kind: str) -> None:
    spec = load_spec(path, spec_class(kind), environment={})
    assert check(json.loads(spec.model_dump_json()), spec_class(kind), "stored") == spec


@pytest.mark.parametrize(("path", "kind"), SPECS, ids=NAMES)
def test_an_editor_finds_nothing_wrong(path: Path, kind: str) -> None:
    Draft202012Validator(json_schema(spec_class(kind))).validate(yaml.safe_load(path.read_text()))
