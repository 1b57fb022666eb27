"""Whatever replaces a node of a shipped spec, or the whole file, is valid or rejected; a few examples of it."""

from pathlib import Path
from typing import Any

import pytest
import spec_mutations
from hostile_specs import Mutation, Node, Shipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

QUICK = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spec_mutations.copy_specs(tmp_path_factory.mktemp("specs"))


@QUICK
@given(mutation=spec_mutations.mutations())
def test_mutated_nodes(mutation: Mutation, folder: Path) -> None:
    spec_mutations.check_mutation(mutation, folder)


@QUICK
@given(place=st.sampled_from(spec_mutations.NODES), value=spec_mutations.VALUES)
def test_values_of_python(place: tuple[Shipped, Node], value: Any, folder: Path) -> None:
    spec_mutations.check_override(*place, value, folder)


@QUICK
@given(content=spec_mutations.FILES)
def test_other_files(content: bytes, folder: Path) -> None:
    spec_mutations.check_file(content, folder)
