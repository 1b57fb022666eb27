"""Kinds of specs. Importing this module reads no YAML library, which `rayfuse schema` does not need."""

import importlib

from rayfuse.spec.base import SpecModel

KINDS: dict[str, str] = {
    "job": "rayfuse.spec.job:Job",
    "sweep": "rayfuse.spec.sweep:Sweep",
    "service": "rayfuse.spec.service:Service",
    "cluster": "rayfuse.spec.cluster:Cluster",
}
"""Import path of the model of each kind of spec."""


def spec_class(kind: str) -> type[SpecModel]:
    """Import the pydantic model of a kind of spec."""
    module, _, name = KINDS[kind].partition(":")
    found: type[SpecModel] = getattr(importlib.import_module(module), name)
    return found


def is_kind(kind: object) -> bool:
    """Return whether a value is a kind of spec."""
    return isinstance(kind, str) and kind in KINDS
