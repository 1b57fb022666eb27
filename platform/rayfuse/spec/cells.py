"""Cells of csv files, which have no types: how they are separated, written and parsed."""

import csv
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import SpecModel
from rayfuse.spec.nesting import is_too_deep

CellType = Literal["int", "float", "inferred", "category", "json", "str"]
"""Parser of a cell of a csv file, which has no types: the text itself if it cannot be parsed so.

`float` is a number in files of every format, `inferred` in csv files only: other files have types. `json` is a list or a
mapping; a `category` is a text without white space around it.
"""
CellParser = Callable[[str], Any]
"""Parser of the text of a cell."""

DELIMITERS = (",", "\t", ";", "|")
"""Delimiters of cells, the first of which is used if several fit."""
_MAX_CELL_CHARS = 1 << 30
"""Longest cell: a file as `data:` URI has many characters, and the default of Python is 131072."""
_MAX_INTEGER_DIGITS = 20
_MAX_NAME_CHARS = 1000
_WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))(?:\.0*)?", re.ASCII)
_LABEL_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_LONG_INTEGER = re.compile(r"-?[1-9]\d{15,18}", re.ASCII)  # not exact as a float, and often an id
_MARKED_NUMBER = re.compile(
    r"[-+($€£¥₹\s]*(0|[1-9]\d*|[1-9]\d{0,2}([.,' \u00a0\u202f]\d{3})+)([.,]\d+)?(e[+-]?\d+)?[\s\u00a0\u202f%$€£¥₹)]*",
    re.ASCII | re.IGNORECASE,
)
USUAL_MISSING_MARKS = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
"""Cells that pandas reads as missing."""


_ALIKE_MARKS = {" ": "\u00a0\u202f", "'": "\u2019"}
"""Marks between thousands that look like others: spaces that do not break a line, and a typographic apostrophe."""


class CellFormat(SpecModel):
    """Marks in the cells of csv files."""

    missing_values: list[str] | None = None
    """Cells of numbers, labels and categories that are missing; by default those that pandas reads as missing, such as NA
    and null. An empty cell always is."""
    decimal: Literal[".", ","] = "."
    """Decimal mark of numbers."""
    thousands: Annotated[str, Field(min_length=1, max_length=1, pattern=r"[^\d+\-]")] | None = None
    """Mark between thousands of numbers, such as a comma; by default there is none."""

    @property
    def missing_marks(self) -> frozenset[str]:
        """Cells that are missing, without white space around them."""
        marks = USUAL_MISSING_MARKS if self.missing_values is None else self.missing_values
        return frozenset({"", *(mark.strip() for mark in marks)})

    def marks(self) -> dict[str, Any]:
        """Return the options that are not the defaults."""
        return self.model_dump(include=set(CellFormat.model_fields), exclude_defaults=True)

    @model_validator(mode="after")
    def _check_marks(self) -> Any:
        if self.thousands == self.decimal:
            raise PydanticCustomError(
                "cells",
                "thousands and decimal are both {mark}; use different marks",
                {"mark": repr(self.decimal), "path": "thousands"},
            )
        return self


def cell_parser(kind: CellType, cells: CellFormat) -> CellParser:
    """Return the parser of the cells of a column.

    Cells of texts and paths are used as they are, and are missing if they are empty. In others, white space around the
    value is removed and the marks of `missing_values` are missing.
    """
    if kind == "str":
        return parse_text
    if kind == "json":
        return parse_json
    missing = cells.missing_marks
    parsers: dict[str, CellParser] = {
        "int": label_of_text,
        "float": lambda text: _number(text, cells),
        "inferred": lambda text: int(text) if _LONG_INTEGER.fullmatch(text) else _number(text, cells),
        "category": lambda text: _category(text, cells),
    }
    parse = parsers[kind]

    def parse_stripped(text: str) -> Any:
        stripped = text.strip()
        return None if stripped in missing else parse(stripped)

    return parse_stripped


def parse_text(text: str) -> str | None:
    """Return the cell of a text or path as it is; None if it is empty."""
    return text or None


def parse_json(text: str) -> Any:
    """Parse a list or mapping in JSON, else return the text; None if it is empty."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text or None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if is_too_deep(value) else value


def canonical_text(text: str) -> str:
    """Return a name without white space around it, in the composed form of Unicode (NFC).

    Names of one look are equal then: macOS decomposes letters with accents in the names of files. Texts of more than a
    thousand characters are not composed, as ordering many marks of one letter takes quadratic time.
    """
    stripped = text.strip()
    is_composed = stripped.isascii() or len(stripped) > _MAX_NAME_CHARS
    return stripped if is_composed else unicodedata.normalize("NFC", stripped)


def split_cells(lines: Iterable[str], delimiter: str, strict: bool = False) -> Any:
    """Return a `csv.reader` of lines; a carriage return alone ends a line too, as in some old files."""
    csv.field_size_limit(_MAX_CELL_CHARS)
    return csv.reader(_split_carriage_returns(lines), delimiter=delimiter, strict=strict)


def find_delimiter(sample: Sequence[str], delimiters: Sequence[str] = DELIMITERS) -> str:
    """Return the delimiter of the first lines of a csv file: it splits the header, and other lines into as many cells."""

    def fit(delimiter: str) -> tuple[bool, int, int]:
        try:
            records = [cells for cells in split_cells(sample, delimiter) if cells]
        except csv.Error:
            return False, 0, 0
        width = len(records[0]) if records else 0
        return width > 1, sum(len(cells) == width for cells in records), width

    return max(delimiters, key=fit)


def _split_carriage_returns(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield from re.split(r"(?<=\r)(?!\n)(?!$)", line) if "\r" in line.rstrip("\r\n") else [line]


def resembles_number(text: str) -> bool:
    """Return whether a text is a number with any marks: 1,234.5, 1.234,5, $12, 5 % or 12."""
    return _MARKED_NUMBER.fullmatch(text) is not None


def label_of_text(text: str) -> int | str:
    """Parse a whole number without leading zeros, else return the text: 3.0 is 3, and `007` is a code."""
    found = _WHOLE.fullmatch(text)
    return int(found[1]) if found and len(found[1]) < _MAX_INTEGER_DIGITS else text


def _number(text: str, cells: CellFormat) -> float | str:
    """Parse a number with the marks of a file, else return the text."""
    plain = text
    for mark in _ALIKE_MARKS.get(cells.thousands or "", ""):
        plain = plain.replace(mark, cells.thousands or "")
    if cells.thousands and re.fullmatch(
        rf"[+-]?\d{{1,3}}({re.escape(cells.thousands)}\d{{3}})+(\D.*)?", plain
    ):
        plain = plain.replace(cells.thousands, "")
    if cells.decimal != ".":
        if "." in plain:
            return text
        plain = plain.replace(cells.decimal, ".")
    return float(plain) if _NUMBER.fullmatch(plain) else text


def _category(text: str, cells: CellFormat) -> float | str:
    """Return a text as it is, but a number with marks as the number: an inferred column has it so, too."""
    return text if _LABEL_NUMBER.fullmatch(text) else _number(text, cells)
