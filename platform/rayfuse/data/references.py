"""Files that rows name by a path or URL. Imports neither numpy nor a modality."""

from typing import Any

from rayfuse.data.files import read_file, resolve_relative
from rayfuse.errors import InvalidInputError


def file_reference(value: Any) -> Any:
    """Return the content or path of a file in the table layout of Hugging Face; other values unchanged."""
    if isinstance(value, dict) and {"bytes", "path"} >= value.keys():
        return value.get("bytes") or value.get("path")
    return value


def read_reference(name: str, value: Any, folder: str) -> Any:
    """Read the file of a path, which is relative to `folder`, or of a URL; other values are returned unchanged.

    Raises InvalidInputError with the input `name` if the file cannot be read.
    """
    if not isinstance(value, str):
        return value
    if not value:
        raise InvalidInputError("the path is empty; write null for an absent input", name)
    try:
        return read_file(resolve_relative(folder, value))
    except FileNotFoundError:
        raise InvalidInputError(f"{value}: no such file", name) from None
    except IsADirectoryError:
        raise InvalidInputError(f"{value}: a folder, not a file", name) from None
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise InvalidInputError(f"{value}: cannot be read: {type(error).__name__}: {error}", name) from None
