"""The JSON Schema of a kind of spec, for editors that complete and check YAML."""

import ast
import inspect
import sys
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from rayfuse.spec.base import Block


class _Generate(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        """A title that only repeats the key in capitals hides the description in an editor."""
        return False

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        """With what stands below each attribute of the class. Pydantic's own `use_attribute_docstrings` reads the sources
        whenever a class is imported, for which short commands should not wait."""
        found = super().model_schema(schema)
        for kind in schema["cls"].__mro__:
            for name, text in _described(kind.__module__).get(kind.__qualname__, {}).items():
                if name in found.get("properties", {}):
                    found["properties"][name].setdefault("description", text)
        return found


@cache
def _described(module: str) -> dict[str, dict[str, str]]:
    """The strings below attributes, by the names of class and attribute; of our own modules alone."""
    if not module.startswith("rayfuse."):
        return {}
    classes = [
        node
        for node in ast.parse(inspect.getsource(sys.modules[module])).body
        if isinstance(node, ast.ClassDef)
    ]
    return {
        kind.name: {
            attribute.target.id: inspect.cleandoc(below.value.value)
            for attribute, below in pairwise(kind.body)
            if isinstance(attribute, ast.AnnAssign)
            and isinstance(attribute.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        }
        for kind in classes
    }


def json_schema(kind: type[Block]) -> JsonSchemaValue:
    """The JSON Schema of a spec as people write it: sizes and durations may be text, columns may be left out."""
    schema = kind.model_json_schema(schema_generator=_Generate)
    return {"$schema": _Generate.schema_dialect, **schema, "title": f"Rayfuse {kind.__name__.lower()}"}


def summary(kind: type[Block]) -> str:
    """The first line of a spec's description."""
    return inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]
