"""Protocols of the URLs in a spec: misspelled ones would fail on the cluster only."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache

from rayfuse.errors import SpecError
from rayfuse.formatting import truncated_repr

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9.-]*)(?:\+[a-z0-9]+)?://")
_OTHERS = (
    "databricks", "databricks-uc", "duckdb", "here", "mariadb", "models", "mssql", "mysql", "oracle", "postgresql",
    "redshift", "runs", "snowflake", "sqlite", "uc",
)  # fmt: skip
"""Protocols of databases and of MLflow, and `here` of relative paths."""


def check_protocols(values: Iterable[tuple[str, str]], where: str) -> None:
    """Raise SpecError for URLs of a protocol that neither fsspec nor a database nor MLflow has, given with their paths.

    fsspec has those of the packages on this machine, too.
    """
    problems = [
        f"{where}: {path}: {truncated_repr(value)} has the unknown protocol {scheme}; {_remedy(scheme)}"
        for path, value in values
        if (scheme := _unknown(value))
    ]
    if problems:
        raise SpecError("\n".join(problems))


def _remedy(scheme: str) -> str:
    close = get_close_matches(scheme, _known(), n=1, cutoff=0.5)
    return (
        f"did you mean {close[0]}?"
        if close
        else "use one of fsspec, such as s3, gs, abfs or https, or install its package"
    )


def _unknown(value: str) -> str | None:
    match = _SCHEME.match(value)
    return match[1] if match and match[1].lower() not in (*_OTHERS, *_known()) else None


@cache
def _known() -> list[str]:
    import fsspec

    return list(fsspec.available_protocols())
