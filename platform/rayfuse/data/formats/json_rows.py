"""Rows of JSON files: an object per line, or a list of objects."""

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from rayfuse.data.formats.base import CellParsers, Rows, read_lines
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.errors import DataError
from rayfuse.spec.nesting import TOO_DEEP, is_too_deep

_BLOCK_CHARS = 1 << 16
_TOKEN_CHARS = 16
"""Characters before the end of a block in which an error may be due to the end."""
_SCALAR = r"(?:\"(?:[^\"\\]|\\.)*\"|[-+\w.]+)"
_KEY = r"\"(?:[^\"\\]|\\.)*\""
_LIST_START = re.compile(
    rf"\s*(?:\[|\{{\s*(?:{_KEY}\s*:\s*{_SCALAR}\s*,\s*)*\"(?:data|rows|records|examples|instances)\"\s*:\s*\[(?=\s*[{{\]]))"
)
"""Start of a list of rows: `[`, or `{"data": [` and the like, after other keys with numbers and texts."""
_SPACE = re.compile(r"\s*")


def read_json_lines(file: str, content: BinaryIO, cell_parsers: CellParsers) -> Rows:
    """Yield the rows of a file with a JSON object per line."""
    for number, line in enumerate(read_lines(file, content), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield InvalidRow(f"{file}:{number}", f"not JSON: {error}; write one object per line")
            continue
        yield _to_row(values, file, number, "write one object per line")


def read_json(file: str, content: BinaryIO, cell_parsers: CellParsers) -> Rows:
    """Yield the rows of a list of objects, of `{"data": [objects]}`, or of a file with an object per line.

    A row's line is its number in the list.
    """
    buffered = io.BufferedReader(content, _BLOCK_CHARS)  # type: ignore[type-var]
    start = buffered.peek(_BLOCK_CHARS)[:_BLOCK_CHARS].decode("utf-8-sig", "ignore")
    if not _LIST_START.match(start):
        yield from read_json_lines(file, buffered, cell_parsers)
        return
    for number, values in enumerate(_ListReader(file, buffered), start=1):
        yield _to_row(values, file, number, "write a list of objects")


def _to_row(values: Any, file: str, number: int, remedy: str) -> Row | InvalidRow:
    if isinstance(values, dict) and is_too_deep(values):
        return InvalidRow(f"{file}:{number}", f"a value is {TOO_DEEP}; store it flat, or as a text")
    if isinstance(values, dict):
        return Row(values, file, number)
    return InvalidRow(f"{file}:{number}", f"expected a JSON object, not {type(values).__name__}; {remedy}")


class _ListReader:
    """Iterator over the values of a JSON list, of which one block and one value are in memory."""

    def __init__(self, file: str, content: BinaryIO) -> None:
        self._file, self._content = file, content
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._place = 0
        self._at_end = False

    def __iter__(self) -> Iterator[Any]:
        self._fill()
        start = _LIST_START.match(self._text)
        assert start is not None  # the caller has checked it
        self._place = start.end()
        if self._next_sign() == "]":
            self._place += 1
        else:
            yield from self._values()
        self._check_end()

    def _values(self) -> Iterator[Any]:
        while True:
            yield self._value()
            sign = self._next_sign()
            if sign not in (",", "]"):
                raise self._error("expected `,` or `]` after a value" if sign else "the file is incomplete")
            self._place += 1
            if sign == "]":
                return

    def _check_end(self) -> None:
        """Raise DataError if more than the end of the object that holds the list follows."""
        if self._next_sign() == "}":
            self._place += 1
        if self._next_sign():
            raise self._error(
                "content after the list of rows; write one list of objects, or one object per line with the suffix .jsonl"
            )

    def _next_sign(self) -> str:
        """Move to the next sign that is not white space, and return it; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._place)
            self._place = match.end() if match else self._place
            if self._place < len(self._text) or not self._fill():
                return self._text[self._place : self._place + 1]

    def _value(self) -> Any:
        self._next_sign()
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                unfinished = (
                    error.msg.startswith("Unterminated") or error.pos > len(self._text) - _TOKEN_CHARS
                )
                if not unfinished or not self._fill():
                    raise self._error(error.msg if not unfinished else "the file is incomplete") from None
            except (ValueError, RecursionError) as error:
                raise self._error(str(error)) from None
            else:
                if end < len(self._text) or not self._fill():  # more digits of a number may follow
                    self._place = end
                    return value

    def _fill(self) -> bool:
        """Read another block, as long as what is left of the text, which is kept; return False at the end."""
        if self._at_end:
            return False
        rest = self._text[self._place :]
        block = self._content.read(max(_BLOCK_CHARS, len(rest)))
        self._at_end = not block
        try:
            self._text, self._place = rest + self._decoder.decode(block, final=not block), 0
        except UnicodeDecodeError:
            raise DataError(f"{self._file}: not UTF-8; save the file as UTF-8") from None
        return not self._at_end

    def _error(self, problem: str) -> DataError:
        near = self._text[self._place : self._place + 40].strip()
        place = f" near `{near}`" if near else ""
        return DataError(f"{self._file}: not JSON: {problem}{place}; write a list of objects")
