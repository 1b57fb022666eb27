"""YAML with comments."""

import math
from collections.abc import Mapping
from typing import Any

import yaml

Path = tuple[str, ...]
"""Keys from the top of a mapping to a node."""

_MAX_FLOW_CHARS = 100
_MAX_FLOW_CHARS_WITH_COMMENT = 60
_COMMENT_COLUMN = 40
_INDENT = "  "


def render(
    content: Mapping[str, Any], comments: Mapping[Path, str], after: Mapping[Path, list[str]] | None = None
) -> str:
    """Return a mapping as YAML. `comments`: at the end of the line of a node; `after`: lines at the end of a block."""
    renderer = _Renderer(comments, after or {})
    return "\n".join(renderer.block(content, ())) + "\n"


class _Renderer:
    """Lines of mappings in block style, and of small ones without comments in flow style."""

    def __init__(self, comments: Mapping[Path, str], after: Mapping[Path, list[str]]) -> None:
        self._comments = comments
        self._after = after

    def block(self, content: Mapping[str, Any], path: Path) -> list[str]:
        """Return the lines of a mapping."""
        indent = _INDENT * len(path)
        lines: list[str] = []
        for key, value in content.items():
            lines += self._entry(key, value, (*path, key), indent)
        return lines + [f"{indent}# {line}" for line in self._after.get(path, ())]

    def _entry(self, key: str, value: Any, path: Path, indent: str) -> list[str]:
        head = f"{indent}{_scalar(key)}:"
        if isinstance(value, Mapping) and not self._fits_line(value, path, head):
            return [self._with_comment(head, path), *self.block(value, path)]
        if isinstance(value, str) and "\n" in value:
            text = [f"{indent}{_INDENT}{line}" for line in value.split("\n")]
            return [self._with_comment(f"{head} |-", path), *text]
        return [self._with_comment(f"{head} {_flow(value)}", path)]

    def _fits_line(self, value: Mapping[str, Any], path: Path, head: str) -> bool:
        inside = any(other[: len(path)] == path and len(other) > len(path) for other in self._comments)
        limit = _MAX_FLOW_CHARS_WITH_COMMENT if path in self._comments else _MAX_FLOW_CHARS
        return not inside and path not in self._after and len(head) + len(_flow(value)) <= limit

    def _with_comment(self, line: str, path: Path) -> str:
        comment = self._comments.get(path)
        return f"{line.ljust(_COMMENT_COLUMN)}  # {_one_line(comment)}" if comment else line


def comment_lines(text: str) -> list[str]:
    """Return a text as lines of a comment, without its `#`."""
    return [_one_line(line) for line in text.splitlines()]


def _one_line(text: str) -> str:
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _scalar(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
        .removesuffix("\n...\n")
        .strip()
    )


def _flow(value: Any) -> str:
    return _scalar(value)
