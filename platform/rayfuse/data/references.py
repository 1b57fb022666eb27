"""Files that rows name by a path or URL. Imports neither numpy nor a modality."""

import errno
from typing import Any

from rayfuse.data.base64_values import decode_data_uri, is_data_uri
from rayfuse.data.embedded_files import EmbeddedFile
from rayfuse.data.files import read_file, resolve_relative
from rayfuse.errors import InvalidInputError
from rayfuse.formatting import truncate, truncate_middle

_MAX_CHARS = 200


def file_reference(value: Any) -> Any:
    """Return the content or path of a file in the table layout of Hugging Face; other values unchanged."""
    if isinstance(value, dict) and {"bytes", "path"} >= value.keys():
        content = value.get("bytes")
        return value.get("path") if content is None else content
    return value


def read_reference(name: str, value: Any, folder: str) -> Any:
    """Read the file of a path, which is relative to `folder`, of a URL, or inside a row; return other values unchanged.

    A `data:` URI is decoded.

    Raises InvalidInputError with the input `name` if the file cannot be read.
    """
    if isinstance(value, EmbeddedFile):
        return value.read()
    if not isinstance(value, str):
        return value
    if not value:
        raise InvalidInputError("the path is empty; write null for an absent input", name)
    try:
        return decode_data_uri(value) if is_data_uri(value) else read_file(resolve_relative(folder, value))
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise InvalidInputError(_explain(truncate_middle(value, _MAX_CHARS), error), name) from None


def _explain(value: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{value}: no such file"
    if isinstance(error, IsADirectoryError):
        return f"{value}: a folder, not a file"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{value}: too long for a path; give base64 as a data: URI, as in data:image/png;base64,…"
    if is_data_uri(value):
        return f"{value}: {error}"
    return f"{value}: cannot be read: {type(error).__name__}: {truncate(str(error), 2 * _MAX_CHARS)}"
