"""Statistics of invalid rows: counts by reason, and the first rows of each."""

import json
import re
from collections.abc import Iterable, Iterator

from rayfuse.data.rows import InvalidRow
from rayfuse.errors import DataError

_MAX_REASONS_SHOWN = 10
_MAX_ROWS_SHOWN = 3
_MAX_REASONS_STORED = 1000
_MAX_ROWS_STORED = 1000
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|[^\s:]*[\d/.\\][^\s:]*")
"""Parts that differ between reasons of one kind: quoted values, numbers, file names."""


class InvalidRows:
    """Invalid rows in bounded memory: its length is their number, and it iterates over the first of them."""

    def __init__(self, rows: Iterable[InvalidRow] = ()) -> None:
        self._count = 0
        self._first_rows: list[InvalidRow] = []
        self._by_reason: dict[str, tuple[int, list[InvalidRow]]] = {}
        for row in rows:
            self.add(row)

    def add(self, row: InvalidRow) -> None:
        """Add a row."""
        self._add(_VARIABLE.sub("…", row.reason), 1, [row])
        self._count += 1
        if len(self._first_rows) < _MAX_ROWS_STORED:
            self._first_rows.append(row)

    def merge(self, other: "InvalidRows") -> None:
        """Add the rows of another instance after the rows of this one."""
        for kind, (count, rows) in other._by_reason.items():
            self._add(kind, count, rows)
        self._count += other._count
        self._first_rows += other._first_rows[: _MAX_ROWS_STORED - len(self._first_rows)]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[InvalidRow]:
        return iter(self._first_rows)

    def top_reasons(self) -> list[str]:
        """Return lines with the most common reasons, each with its first rows and the number of others."""
        common = sorted(self._by_reason.values(), key=lambda kind: kind[0], reverse=True)
        lines = [line for count, rows in common[:_MAX_REASONS_SHOWN] for line in _reason_lines(count, rows)]
        others = common[_MAX_REASONS_SHOWN:]
        if others:
            more = sum(count for count, _ in others)
            lines.append(f"  … and {more} more rows for {len(others)} other reasons")
        return lines

    def skipped_lines(self) -> Iterator[str]:
        """Yield a line for each of the first rows."""
        yield from (f"skipped: {row}" for row in self._first_rows)
        if self._count > len(self._first_rows):
            yield f"skipped: {self._count - len(self._first_rows)} more rows"

    def to_json(self) -> str:
        """Serialize to JSON."""
        kinds = {
            kind: [count, [[r.origin, r.reason] for r in rows]]
            for kind, (count, rows) in self._by_reason.items()
        }
        return json.dumps([self._count, [[row.origin, row.reason] for row in self._first_rows], kinds])

    @classmethod
    def from_json(cls, text: str) -> "InvalidRows":
        """Deserialize the output of `to_json`."""
        found = cls()
        found._count, first, kinds = json.loads(text)
        found._first_rows = [InvalidRow(*row) for row in first]
        found._by_reason = {
            kind: (count, [InvalidRow(*row) for row in rows]) for kind, (count, rows) in kinds.items()
        }
        return found

    def _add(self, kind: str, count: int, rows: list[InvalidRow]) -> None:
        if kind not in self._by_reason and len(self._by_reason) >= _MAX_REASONS_STORED:
            kind = "other"
        known, kept = self._by_reason.get(kind, (0, []))
        self._by_reason[kind] = (known + count, [*kept, *rows][:_MAX_ROWS_SHOWN])


def check_invalid_fraction(invalid: InvalidRows, total: int, limit: float) -> None:
    """Raise DataError with the most common reasons if more than the fraction `limit` of all rows is invalid."""
    if len(invalid) and len(invalid) / total > limit:
        raise DataError(
            f"{len(invalid)} of {total} rows are invalid ({len(invalid) / total:.1%}), above data.max_bad_rows of {limit:.1%}; correct them or raise it:\n"
            + "\n".join(invalid.top_reasons())
        )


def no_valid_rows_message(source: str, invalid: InvalidRows) -> str:
    """Return the error message of data without a valid row."""
    if not len(invalid):
        return f"{source}: no rows"
    return "\n".join([f"{source}: all {len(invalid)} rows are invalid:", *invalid.top_reasons()])


def _reason_lines(count: int, rows: list[InvalidRow]) -> Iterable[str]:
    yield from (f"  {row}" for row in rows)
    if count > len(rows):
        yield f"  … and {count - len(rows)} more like these"
