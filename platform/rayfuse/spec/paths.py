"""Nodes of a spec by path, as in `train.optimizer.lr` or `tolerations.0`.

A key that contains dots, such as those of a sweep's `space`, is matched as a whole.
"""

from typing import Any, Final

ABSENT: Final = object()
"""Returned by `get_at` if there is no such node."""


def get_at(content: Any, path: str) -> Any:
    """Return the node at `path`, or ABSENT."""
    node, rest = content, path
    while rest:
        key, rest = _first_key(node, rest)
        if isinstance(node, dict) and key in node:
            node = node[key]
        elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            return ABSENT
    return node


def set_at(content: dict[str, Any], path: str, value: Any) -> None:
    """Set the node at `path`, creating mappings on the way. Raises ValueError if a parent is not a mapping or list."""
    node: Any = content
    key, rest = _first_key(node, path)
    while rest:
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = _child(node, key, path.removesuffix(f".{rest}"))
        key, rest = _first_key(node, rest)
    if isinstance(node, list):
        _child(node, key, path)
        node[int(key)] = value
    elif isinstance(node, dict):
        node[key] = value
    else:
        raise ValueError(f"`{path.removesuffix(f'.{key}')}` is a value, not a mapping")


def is_below(path: str, block: str) -> bool:
    """Return whether `path` is `block` or a node inside it."""
    return path == block or path.startswith(f"{block}.")


def _first_key(node: Any, path: str) -> tuple[str, str]:
    """Return the key of `node` that `path` starts with, and the rest of the path."""
    known = [key for key in node if is_below(path, str(key))] if isinstance(node, dict) else []
    key = max(known, key=len, default=path.partition(".")[0])
    return key, path[len(key) + 1 :]


def _child(node: Any, key: str, path: str) -> Any:
    if isinstance(node, list):
        if not key.isdecimal() or int(key) >= len(node):
            raise ValueError(f"`{path}`: the list has {len(node)} entries; count from 0")
        return node[int(key)]
    if isinstance(node, dict):
        return node[key]
    raise ValueError(f"`{path}`: its parent is a value, not a mapping")
