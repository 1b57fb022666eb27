"""JSON Schemas of specs and of custom parts, for editors that complete and validate YAML."""

import ast
import inspect
import re
import sys
import textwrap
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, create_model
from pydantic.json_schema import (
    CoreModeRef,
    DefsRef,
    GenerateJsonSchema,
    JsonSchemaMode,
    JsonSchemaValue,
    _DefinitionsRemapping,
)

from rayfuse.errors import SpecError
from rayfuse.spec.base import SpecModel
from rayfuse.spec.family import CustomConfig, import_object, load_families, options_model

_ATTRIBUTE_OR_DOCSTRING = re.compile(
    r'^class (?P<cls>\w+)|^(?P<end>[^\s)\]}#])|^    (?P<attribute>\w+):|^    """(?P<text>.*?)"""', re.M | re.S
)


class _SchemaGenerator(GenerateJsonSchema):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._owners: dict[DefsRef, CoreModeRef] = {}

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return False: a title that only repeats the key in capitals hides the description in an editor."""
        return False

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        """Leave the keys in the order of the specs, which is that of the documentation."""
        return value

    def encode_default(self, dft: Any) -> Any:
        """Return a default as JSON; without one of pydantic's serializers per value for what is JSON already."""
        return dft if dft is None or type(dft) in (bool, int, float, str) else super().encode_default(dft)

    @property
    def mode(self) -> JsonSchemaMode:
        """Return the only mode: pydantic searches the model's configuration for it at each of ten thousand nodes."""
        return "validation"

    def get_defs_ref(self, core_mode_ref: CoreModeRef) -> DefsRef:
        """Name a definition by its class, or by its module, too, if another class has this name."""
        choices = self._prioritized_defsref_choices[super().get_defs_ref(core_mode_ref)]
        return next(name for name in choices if self._owners.setdefault(name, core_mode_ref) == core_mode_ref)

    def _build_definitions_remapping(self) -> _DefinitionsRemapping:
        """Rename no definition: pydantic's search for the shortest unambiguous names takes a quarter of the time."""
        return _DefinitionsRemapping({}, {})

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        """Add what stands below each attribute of the class as its description.

        Pydantic's `use_attribute_docstrings` reads the sources whenever a class is imported, which slows down short
        commands.
        """
        found = super().model_schema(schema)
        for model in schema["cls"].__mro__:
            for name, text in _attribute_docstrings(model).items():
                if name in found.get("properties", {}):
                    found["properties"][name].setdefault("description", text)
        return found


def _attribute_docstrings(model: type) -> dict[str, str]:
    """Return the strings below the attributes of a class, by the name of the attribute."""
    if model.__module__.startswith("rayfuse."):
        return _docstrings_of_module(model.__module__).get(model.__qualname__, {})
    is_custom = issubclass(model, BaseModel) and model is not BaseModel
    return _docstrings_of_custom_class(model) if is_custom else {}


def _docstrings_of_custom_class(model: type[BaseModel]) -> dict[str, str]:
    """Return the strings below the attributes of a class of a user's package, which may lie in another class."""
    try:
        [cls] = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    except (OSError, TypeError):  # no source, as of a class from `create_model`
        return {}
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(getattr(cls, "body", []))
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


@cache
def _docstrings_of_module(module: str) -> dict[str, dict[str, str]]:
    """Return the strings below the attributes of a module of Rayfuse, by the names of class and attribute.

    By a regular expression, as syntax trees of all modules would take a quarter of the time of `rayfuse schema job`.
    """
    found: dict[str, dict[str, str]] = {}
    cls, attribute = None, None
    source = Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")
    for match in _ATTRIBUTE_OR_DOCSTRING.finditer(source):
        if match["cls"] or match["end"]:
            cls, attribute = match["cls"], None
        elif match["attribute"]:
            attribute = match["attribute"]
        elif cls and attribute:
            found.setdefault(cls, {})[attribute] = inspect.cleandoc(match["text"])
            attribute = None
    return found


def json_schema(kind: type[SpecModel]) -> JsonSchemaValue:
    """Return the JSON Schema of a spec as users write it: sizes and durations may be text, columns may be missing."""
    return _schema(kind, f"Rayfuse {kind.__name__.lower()}")


def custom_part_schema(path: str) -> JsonSchemaValue:
    """Return the JSON Schema of the block of a custom part, with its `Options`.

    path: import path of its class. Raises SpecError if the class does not exist or is not a part of any family.
    """
    part = import_object(path)
    config = _custom_config(part, path)
    fields: dict[str, Any] = {"type": (Literal[path], ...)}
    options = options_model(part)
    if options is not None:
        required = any(field.is_required() for field in options.model_fields.values())
        fields["options"] = (options, ... if required else Field(default_factory=options))
    block = create_model(part.__name__, __base__=config, __doc__=part.__doc__ or config.__doc__, **fields)
    return _schema(block, path)


def _custom_config(part: Any, path: str) -> type[CustomConfig]:
    """Return the spec model for the family whose base class a class derives from."""
    bases = {f"{base.__module__}:{base.__qualname__}" for base in getattr(part, "__mro__", ())}
    customs = [family.custom for families in load_families().values() for family in families]
    for custom in customs:
        if custom.base_class in bases:
            return custom
    known = ", ".join(dict.fromkeys(custom.base_class.replace(":", ".") for custom in customs))
    raise SpecError(f"{path}: not a subclass of any of: {known}")


def _schema(model: type[BaseModel], title: str) -> JsonSchemaValue:
    schema = model.model_json_schema(schema_generator=_SchemaGenerator)
    return {"$schema": _SchemaGenerator.schema_dialect, **schema, "title": title}


def summary(kind: type[SpecModel]) -> str:
    """Return the first line of a spec's description."""
    return inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]
