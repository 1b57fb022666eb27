"""Variables of specs: `${NAME}` and `${NAME:-default}`, and `$$` for a dollar sign."""

import re
from collections.abc import Mapping
from typing import Any

from rayfuse.errors import SpecError
from rayfuse.formatting import CONTROL_CHARACTER, printable, truncate
from rayfuse.spec.spec_file import MAX_ERROR_LENGTH, place

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^$}]*))?\}")
_DOLLAR = re.compile(rf"{_VARIABLE.pattern}|(\$\$)|\$(\{{[^}}]*\}}?)?")
_MAX_LENGTH_SHOWN = 60


def substitute(node: Any, environment: Mapping[str, str], where: str) -> Any:
    """Return `node` with the variables in every key and text below it replaced, and `$$` by a dollar sign.

    Raises SpecError with file, path and variable if one is not set and has no default, and for any other dollar sign:
    the text of a misspelled variable must not become a value, such as an API key.
    """
    return _Substitution(environment, place(where)).apply(node, ())


def is_variable(text: str) -> bool:
    """Return whether a text is a single variable."""
    return _VARIABLE.fullmatch(text) is not None


def escape_dollars(node: Any) -> Any:
    """Return `node` with every dollar sign doubled that does not begin a variable, so that `substitute` restores it."""
    if isinstance(node, dict):
        return {escape_dollars(key): escape_dollars(value) for key, value in node.items()}
    if isinstance(node, list):
        return [escape_dollars(value) for value in node]
    if not isinstance(node, str):
        return node
    return re.sub(rf"({_VARIABLE.pattern})|\$", lambda match: match[1] or "$$", node)


class _Substitution:
    """Replaces variables by the values of an environment."""

    def __init__(self, environment: Mapping[str, str], where: str) -> None:
        self._environment = environment
        self._where = where

    def apply(self, node: Any, path: tuple[str, ...]) -> Any:
        if isinstance(node, dict):
            return self._apply_to_mapping(node, path)
        if isinstance(node, list):
            return [self.apply(value, (*path, str(i))) for i, value in enumerate(node)]
        if not isinstance(node, str) or "$" not in node:
            return node
        return _DOLLAR.sub(lambda match: self._replace(match, path), node)

    def _apply_to_mapping(self, node: dict[Any, Any], path: tuple[str, ...]) -> dict[Any, Any]:
        values = {}
        for key, value in node.items():
            name = self.apply(key, (*path, str(key)))
            if name in values:
                raise self._error((*path, str(name)), "the key is given twice; keep one, or rename the other")
            values[name] = self.apply(value, (*path, str(name)))
        return values

    def _replace(self, match: re.Match[str], path: tuple[str, ...]) -> str:
        name, default, is_escape, braces = match.groups()
        if is_escape:
            return "$"
        if name is None:
            # Not what follows a lone dollar sign, which may be the rest of a password.
            written = f"`${printable(braces, _MAX_LENGTH_SHOWN)}`" if braces else "a `$`"
            raise self._error(
                path,
                f"{written} is not a variable; write ${{NAME}}, ${{NAME:-default}}, or $$ for a dollar sign",
            )
        value = self._environment.get(name) or default
        if value is None:
            raise self._error(
                path,
                f"the environment variable {printable(name, _MAX_LENGTH_SHOWN)} is not set or empty; set it, or write "
                f"${{{printable(name, _MAX_LENGTH_SHOWN)}:-default}}",
            )
        if CONTROL_CHARACTER.search(value) or not is_unicode(value):
            raise self._error(
                path,
                f"the environment variable {name} holds control characters or is not UTF-8; set it again",
            )
        return value

    def _error(self, path: tuple[str, ...], problem: str) -> SpecError:
        return SpecError(
            truncate(f"{self._where}: {printable('.'.join(path), 60)}: {problem}", MAX_ERROR_LENGTH)
        )


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: False with lone surrogates, as of a variable that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
