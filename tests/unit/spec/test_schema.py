"""The JSON Schema for editors agrees with the models."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from rayfuse.spec.kinds import KINDS, spec_class
from rayfuse.spec.schema import json_schema, summary

JOB: dict[str, Any] = {
    "kind": "job",
    "name": "tiny",
    "data": {"train": "train.jsonl", "validation": {"fraction": 0.2}, "max_bad_rows": "2%"},
    "inputs": {"image": {"type": "image", "encoder": {"type": "conv"}}},
    "fusion": {"type": "concat"},
    "tasks": {"answer": {"type": "classification"}},
    "output": {"storage": "runs"},
}
SERVICE = {
    "kind": "service",
    "name": "tiny",
    "model": "models:/tiny@champion",
    "auth": {"keys": "${KEYS:-}"},
    "limits": {"max_body_size": "20MB", "request_timeout": 5},
}


@cache
def schema_of(kind: str) -> dict[str, Any]:
    return json_schema(spec_class(kind))


@cache
def validator(kind: str) -> Draft202012Validator:
    schema = schema_of(kind)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_has_dialect_title_and_description(kind: str) -> None:
    schema = schema_of(kind)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == f"Rayfuse {kind}"
    assert schema["description"].startswith(summary(spec_class(kind)))


def test_fields_are_described_by_the_strings_under_them() -> None:
    schema = schema_of("job")
    assert schema["$defs"]["LoraAdapterConfig"]["properties"]["r"]["description"] == "Rank of each adapter."
    # Inherited from the parent of all inputs.
    assert "lack this input" in schema["$defs"]["AudioInput"]["properties"]["optional"]["description"]


def test_the_schema_shows_default_encoders_and_the_default_fusion() -> None:
    schema = schema_of("job")
    assert schema["$defs"]["ImageInput"]["properties"]["encoder"]["default"]["type"] == "conv"
    assert schema["properties"]["fusion"]["default"]["type"] == "concat"
    plain = {key: value for key, value in JOB.items() if key != "fusion"}
    validator("job").validate({**plain, "inputs": {"image": {"type": "image"}}})


def test_specs_as_written_are_valid() -> None:
    validator("job").validate(JOB)
    validator("service").validate(SERVICE)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("job", {"trian": {}}),
        ("job", {"kind": "service"}),
        ("job", {"inputs": {}}),
        ("job", {"train": {"epochs": 0}}),
        ("job", {"fusion": {"type": "soup"}}),
        ("job", {"tasks": {"answer": {"type": "classification", "columns": "label"}}}),
        ("job", {"compute": {"workers": 0}}),
        ("service", {"port": 0}),
        ("service", {"batching": {"batch_wait_timeout": -1}}),
    ],
)
def test_invalid_specs_do_not_match(kind: str, change: dict[str, Any]) -> None:
    spec = JOB if kind == "job" else SERVICE
    with pytest.raises(ValidationError):
        validator(kind).validate(spec | change)


@pytest.mark.parametrize("kind", KINDS)
def test_unimplemented_options_are_not_in_the_schema(kind: str) -> None:
    offered = set(keys(schema_of(kind)))
    assert not offered & {"traffic"}


def keys(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for inner in schema.values():
            yield from keys(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from keys(inner)
