"""Limits of JSON: how deeply values are nested, far below Python's limit of recursion, and the memory that they take."""

import re
from typing import Any

MAX_DEPTH = 64
"""Levels of lists and mappings in a row or a request."""
TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"


def is_too_deep(value: Any) -> bool:
    """Return whether lists and mappings are nested deeper than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, list | dict)
        ]
        if not level:
            return False
    return True


_STRING = re.compile(r'"(?:[^"\\]+|\\.)*"', re.DOTALL)
_BYTES_PER_LIST, _BYTES_PER_MAPPING, _BYTES_PER_ITEM = 90, 240, 32
_BYTES_PER_STRING = 60
_SMALL = 4_000_000
"""JSON of which the memory is not estimated exactly."""


def json_memory(text: str) -> int:
    """Return the bytes of memory that JSON takes when it is parsed, estimated from its punctuation."""
    estimate = _estimate(text)
    return estimate if estimate <= _SMALL else _estimate(_STRING.sub('""', text)) + len(text)


def _estimate(text: str) -> int:
    return (
        text.count("[") * _BYTES_PER_LIST
        + text.count("{") * _BYTES_PER_MAPPING
        + (text.count(",") + text.count(":")) * _BYTES_PER_ITEM
        + text.count('"') // 2 * _BYTES_PER_STRING
    )
