"""Rows that cannot be used: counted, told apart by their reasons, and named as far as people can read them."""

import json
import re
from collections.abc import Iterable, Iterator

from rayfuse.data.rows import BadRow
from rayfuse.errors import DataError

_REASONS_SHOWN = 10
_ROWS_SHOWN = 3
_REASONS_KEPT = 1000
_ROWS_KEPT = 1000
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|[^\s:]*[\d/.\\][^\s:]*")
"""What differs between reasons of one kind: quoted values, numbers, file names."""


class BadRows:
    """How many rows are bad (its length), and the first of them (what it iterates over), in bounded memory."""

    def __init__(self, rows: Iterable[BadRow] = ()) -> None:
        self._count = 0
        self._first: list[BadRow] = []
        self._kinds: dict[str, tuple[int, list[BadRow]]] = {}
        for row in rows:
            self.add(row)

    def add(self, row: BadRow) -> None:
        self._add(_VARIABLE.sub("…", row.reason), 1, [row])
        self._count += 1
        if len(self._first) < _ROWS_KEPT:
            self._first.append(row)

    def merge(self, other: "BadRows") -> None:
        """Add those of another, which come after these."""
        for kind, (count, rows) in other._kinds.items():
            self._add(kind, count, rows)
        self._count += other._count
        self._first += other._first[: _ROWS_KEPT - len(self._first)]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[BadRow]:
        return iter(self._first)

    def worst_offenders(self) -> list[str]:
        """The commonest kinds of reasons, each with its first rows and how many more there are."""
        common = sorted(self._kinds.values(), key=lambda kind: kind[0], reverse=True)
        lines = [line for count, rows in common[:_REASONS_SHOWN] for line in _offenders(count, rows)]
        others = common[_REASONS_SHOWN:]
        if others:
            more = sum(count for count, _ in others)
            lines.append(f"  … and {more} more rows for {len(others)} other reasons")
        return lines

    def skipped(self) -> Iterator[str]:
        """A line for each of the first rows."""
        yield from (f"skipped: {row}" for row in self._first)
        if self._count > len(self._first):
            yield f"skipped: {self._count - len(self._first)} more rows"

    def to_json(self) -> str:
        kinds = {
            kind: [count, [[r.origin, r.reason] for r in rows]] for kind, (count, rows) in self._kinds.items()
        }
        return json.dumps([self._count, [[row.origin, row.reason] for row in self._first], kinds])

    @classmethod
    def from_json(cls, text: str) -> "BadRows":
        found = cls()
        found._count, first, kinds = json.loads(text)
        found._first = [BadRow(*row) for row in first]
        found._kinds = {
            kind: (count, [BadRow(*row) for row in rows]) for kind, (count, rows) in kinds.items()
        }
        return found

    def _add(self, kind: str, count: int, rows: list[BadRow]) -> None:
        if kind not in self._kinds and len(self._kinds) >= _REASONS_KEPT:
            kind = "other"
        known, kept = self._kinds.get(kind, (0, []))
        self._kinds[kind] = (known + count, [*kept, *rows][:_ROWS_SHOWN])


def refuse_too_many_bad(bad: BadRows, total: int, limit: float) -> None:
    """Raise DataError where more than the share `limit` of all rows is unusable, with the worst offenders."""
    if len(bad) and len(bad) / total > limit:
        raise DataError(
            f"{len(bad)} of {total} rows cannot be used ({len(bad) / total:.1%}; data.max_bad_rows allows {limit:.1%}):\n"
            + "\n".join(bad.worst_offenders())
        )


def none_usable(what: str, bad: BadRows) -> str:
    """What to tell of data without a usable row."""
    return "\n".join([f"{what}: none of its {len(bad)} rows can be used:", *bad.worst_offenders()])


def _offenders(count: int, rows: list[BadRow]) -> Iterable[str]:
    yield from (f"  {row}" for row in rows)
    if count > len(rows):
        yield f"  … and {count - len(rows)} more like these"
