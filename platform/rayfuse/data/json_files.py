"""JSON files that a spec names."""

import json
from typing import Any

from rayfuse.data.files import read_file
from rayfuse.errors import SpecError


def read_json_object(url: str) -> dict[str, Any]:
    """Return the object in a JSON file. Raises SpecError, with the URL, if it cannot be read or is something else."""
    try:
        text = read_file(url)
    except FileNotFoundError:
        raise SpecError(f"{url}: file not found; check the path") from None
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise SpecError(f"{url}: cannot be read: {type(error).__name__}: {error}") from None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{url}: is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise SpecError(f"{url}: the file must be a JSON object")
    return content
