"""Strategies and checks of hostile specs: whatever is loaded is valid, or rejected in short printable lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_specs
import pytest
from hostile_specs import Mutation, Outcome, Shipped, nodes_of
from hypothesis import strategies as st

from rayfuse.errors import SpecError
from rayfuse.spec.kinds import spec_class
from rayfuse.spec.load import load_spec

SPECS = hostile_specs.shipped_specs()
NODES = [(spec, node) for spec in SPECS for node in nodes_of(spec.content)]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


FILES = st.binary(max_size=2000) | st.text(max_size=2000).map(str.encode)


@st.composite
def mutations(draw: st.DrawFn) -> Mutation:
    spec, node = draw(st.sampled_from(NODES))
    return hostile_specs.mutate(spec, node, lambda items: draw(st.sampled_from(list(items))))


def copy_specs(folder: Path) -> Path:
    """Copy the shipped specs, as a sweep reads its job; return the folder."""
    for spec in SPECS:
        (folder / spec.path.name).write_text(spec.path.read_text())
    return folder


def check(name: str, call: Callable[[], Any], must_fail: bool = False) -> None:
    outcome = Outcome()
    hostile_specs.observe(name, call, must_fail, outcome)
    assert not [*outcome.tracebacks, *outcome.accepted, *outcome.messages]


def check_mutation(mutation: Mutation, folder: Path) -> None:
    path, overrides = hostile_specs.write(mutation, folder)
    try:
        check(
            str(mutation),
            lambda: hostile_specs.load(str(path), mutation.spec.kind, overrides),
            mutation.must_fail,
        )
    finally:
        path.write_text(mutation.spec.path.read_text())


def check_override(spec: Shipped, node: hostile_specs.Node, value: Any, folder: Path) -> None:
    """Load a spec with a Python value, and if it is valid, write it as YAML and load that."""
    kind = spec_class(spec.kind)

    def call() -> None:
        loaded = load_spec(spec.path, kind, {".".join(map(str, node)): value}, {})
        target = folder / "saved.yaml"
        target.write_text(loaded.to_yaml())
        assert load_spec(target, kind, environment={}) == loaded

    check(f"{spec.path.name} {node} = {value!r}", call)


def check_file(content: bytes, folder: Path) -> None:
    target = folder / "file.yaml"
    target.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_spec(target, spec_class("job"), environment={})
    assert hostile_specs.message_problem(str(caught.value)) is None
