"""Custom parts of a spec are found where they stand, and their errors have that path."""

from typing import Any

import pytest

from rayfuse.errors import SpecError
from rayfuse.spec.custom_parts import check_custom_parts
from rayfuse.spec.job import Job

JOB: dict[str, Any] = {
    "name": "x",
    "data": {"train": "x.csv"},
    "inputs": {"text": {"type": "text"}},
    "tasks": {"y": {"type": "classification"}},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion": {"type": "os:system"}}, "x.yaml: fusion: os:system: not a subclass of rayfuse.model.fusion.base.FusionModule"),
        ({"fusion": {"type": "no_such_package:A"}}, "x.yaml: fusion: no_such_package:A: No module named 'no_such_package'; install"),
        ({"fusion": {"type": "toy_parts.fusion:Absent"}}, "x.yaml: fusion: toy_parts.fusion:Absent: the module toy_parts.fusion has no `Absent`"),
        (
            {"fusion": {"type": "toy_parts.fusion:MeanFusion", "options": {"dropout": 2}}},
            "x.yaml: fusion: toy_parts.fusion:MeanFusion: options.dropout: must be less than 1, not 2",
        ),
        (
            {"inputs": {"text": {"type": "text", "augment": [{"type": "os:system"}]}}},
            "x.yaml: inputs.text.augment.0: os:system: not a subclass",
        ),
    ],
)  # fmt: skip
def test_an_error_has_the_path_of_the_part(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_custom_parts(Job(**JOB | change), "x.yaml")
    assert str(caught.value).startswith(message)


def test_parts_that_exist() -> None:
    check_custom_parts(Job(**JOB), "x.yaml")
    check_custom_parts(Job(**JOB | {"fusion": {"type": "toy_parts.fusion:MeanFusion"}}), "x.yaml")
