"""Find the class that an import path in a spec names."""

import importlib
from typing import Any

from pydantic import BaseModel, ValidationError

from rayfuse.errors import SpecError
from rayfuse.spec.custom import Custom


def load_class(path: str, family: Any) -> Any:
    """The subclass of `family` at MODULE:CLASS. Raises SpecError where there is none.

    Nothing that a model folder brings along is imported: the module must be installed, or on the Python path.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise SpecError(
            f"{path}: {error}; install the package where Rayfuse runs, or put its folder on PYTHONPATH"
        ) from None
    except AttributeError:
        raise SpecError(f"{path}: the module {module} has no `{name}`") from None
    if not (isinstance(found, type) and issubclass(found, family)):
        raise SpecError(f"{path}: not a subclass of {family.__module__}.{family.__qualname__}")
    return found


def custom_options(block: Custom, found: type) -> Any:
    """What the class gets: its own `Options`, checked, or the mapping as it stands."""
    kind = getattr(found, "Options", None)
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return block.options
    try:
        return kind.model_validate(block.options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(["options", *map(str, first["loc"])])
        raise SpecError(f"{block.type}: {where}: {first['msg']}") from None
