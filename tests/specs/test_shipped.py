"""Check that every shipped spec loads as the kind of its folder, survives a round trip, and matches the JSON Schema."""

import json
from functools import cache
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from rayfuse.spec.kinds import spec_class
from rayfuse.spec.load import load_spec, validate_spec
from rayfuse.spec.schema import json_schema

ROOT = Path(__file__).parents[2]
KIND_OF_FOLDER = {"jobs": "job", "tune": "sweep", "serve": "service", "k8s": "cluster"}
SHIPPED = sorted(path for folder in KIND_OF_FOLDER for path in (ROOT / folder).glob("**/*.yaml"))


def kind_of(path: Path) -> str | None:
    """Return the kind that a shipped file must have; None for Kubernetes manifests."""
    folder = path.relative_to(ROOT).parts[0]
    if folder == "k8s" and "kind: cluster" not in path.read_text().splitlines():
        return None
    return KIND_OF_FOLDER[folder]


SPECS = [(path, kind) for path in SHIPPED if (kind := kind_of(path))]
NAMES = [str(path.relative_to(ROOT)) for path, _ in SPECS]


def test_the_main_job_exists() -> None:
    assert {"jobs/digit_arithmetic.yaml", "serve/digit_arithmetic.yaml"} <= set(NAMES)


@pytest.mark.parametrize(("path", "kind"), SPECS, ids=NAMES)
def test_shipped_specs_load_without_variables(path: Path, kind: str) -> None:
    spec = load_spec(path, spec_class(kind), environment={})
    assert validate_spec(json.loads(spec.model_dump_json()), spec_class(kind), "stored") == spec


@pytest.mark.parametrize(("path", "kind"), SPECS, ids=NAMES)
def test_shipped_specs_match_the_schema(path: Path, kind: str) -> None:
    validator(kind).validate(yaml.safe_load(path.read_text()))


@cache
def validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator(json_schema(spec_class(kind)))
