"""The JSON Schema of a kind of spec, for editors that complete and check YAML."""

import inspect
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from rayfuse.spec.base import Block


class _Generate(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        """A title that only repeats the key in capitals hides the description in an editor."""
        return False


def json_schema(kind: type[Block]) -> JsonSchemaValue:
    """The JSON Schema of a spec as people write it: sizes and durations may be text, columns may be left out."""
    schema = kind.model_json_schema(schema_generator=_Generate)
    return {"$schema": _Generate.schema_dialect, **schema, "title": f"Rayfuse {kind.__name__.lower()}"}


def summary(kind: type[Block]) -> str:
    """The first line of a spec's description."""
    return inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]
