"""Values of a model's inputs in rows of memory, which have the training columns or a value per input.

    {"age": 61, "city": "Oslo", "photo": "a.jpg", "label": "yes"}           as in a training file
    {"person": {"age": 61, "city": "Oslo"}, "photo": b"…"}                   as over HTTP

Imports neither numpy nor a modality, so that clients of endpoints have it too.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rayfuse.data.base64_values import decode_base64, is_data_uri
from rayfuse.data.objects import is_instance_of, to_raw_value
from rayfuse.data.references import file_reference, read_reference
from rayfuse.errors import InvalidInputError
from rayfuse.spec.base import is_missing
from rayfuse.spec.cells import CellFormat, CellParser, CellType, cell_parser, parse_json
from rayfuse.spec.message_parts import file_parts

if TYPE_CHECKING:
    import pandas as pd

    from rayfuse.spec.inputs import Input

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputDescription:
    """Format, columns and limits of an input of a model, for readers of rows and for clients."""

    type: str
    """Kind of input."""
    formats: tuple[str, ...]
    """Formats of a value: `file`, `text`, `json`."""
    columns: Mapping[str, CellType]
    """Columns of the rows → how their cells are parsed in a csv file."""
    is_flat: bool
    """True if a value is a mapping of several columns of a row."""
    max_items: int
    """Largest number of values per row."""
    optional: bool
    """True if rows may lack this input."""
    fallback_input: str | None
    """The input whose value is used if a row has none for this one."""
    is_part: bool = False
    """True if its values are parts of the messages of `fallback_input`."""
    cells: Mapping[str, Any] = field(default_factory=dict)
    """Marks in cells that are texts, other than the defaults (see `rayfuse.spec.cells.CellFormat`)."""

    @classmethod
    def of(cls, options: "Input", cells: CellFormat | None = None) -> "InputDescription":
        """Describe an input of a job, whose csv files have the marks of `cells`."""
        from rayfuse.modalities import modality_class

        return cls(
            options.type,
            tuple(modality_class(options).value_formats),
            options.source_columns,
            options.reads_mapping,
            options.max_items,
            options.optional,
            options.fallback_input,
            options.dialogue is not None,
            (cells or CellFormat()).marks(),
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "InputDescription":
        """Return the description that `to_json` has written."""
        return cls(**{**content, "formats": tuple(content["formats"])})

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON."""
        return asdict(self)

    def read(self, cells: Mapping[str, Any]) -> Any:
        """Return the raw value in the columns of a row; None if they are missing."""
        found = {column: self._parse_cell(column, cells.get(column)) for column in self.columns}
        if self.is_flat:
            return found if any(not is_missing(value) for value in found.values()) else None
        [value] = found.values()
        return value

    def _parse_cell(self, column: str, value: Any) -> Any:
        return self._parsers[column](value) if isinstance(value, str) else value

    @cached_property
    def _parsers(self) -> dict[str, CellParser]:
        cells = CellFormat(**self.cells)
        # "NA" may be a category in rows in memory, as in jsonl and parquet
        marked = {**self.cells, "missing_values": []}
        formats = {"category": CellFormat(**marked)}
        return {column: cell_parser(kind, formats.get(kind, cells)) for column, kind in self.columns.items()}


def describe_inputs(
    inputs: Mapping[str, "Input"], cells: CellFormat | None = None
) -> dict[str, InputDescription]:
    """Describe the inputs of a job, by name; `cells` has the marks in cells that are texts."""
    return {name: InputDescription.of(options, cells) for name, options in inputs.items()}


class RowAdapter:
    """Converter of rows to raw values by input."""

    def __init__(self, inputs: Mapping[str, InputDescription]) -> None:
        self.inputs = dict(inputs)
        self._owners: dict[str, list[str]] = {}
        for name, described in self.inputs.items():
            for column in described.columns:
                self._owners.setdefault(column, []).append(name)

    @property
    def keys(self) -> set[str]:
        """The keys of a row that are read: names of inputs, and their columns."""
        return {*self.inputs, *self._owners}

    def read(self, row: Mapping[str, Any], folder: str | None = ".") -> dict[str, Any]:
        """Return the value of each input that a row has: bytes of files, else the value itself.

        Paths are relative to `folder`; with None, files that the row names are not read. Raises InvalidInputError with
        the input if a file cannot be read, or if an input is given both by its name and by its columns.
        """
        self._log_ignored(row.keys())
        given = {
            key: value
            for key, value in row.items()
            if key in self.inputs or key in self._owners
            if not is_missing(value)
        }
        named = {name for name in self.inputs if self._is_named(name, given)}
        cells = {key: value for key, value in given.items() if key not in named}
        values: dict[str, Any] = {}
        for name, described in self.inputs.items():
            if name in named:
                self._reject_columns_of(name, cells)
                value = self._parse_named(described, given[name])
            elif described.is_part and self._shares_columns(described):
                value = self._read_parts(name, given, cells)
            elif described.fallback_input is not None and self._shares_columns(described):
                continue
            else:
                value = described.read(cells)
            if not is_missing(value):
                values[name] = self._load_items(name, value, folder)
        return values

    def _read_parts(self, name: str, given: Mapping[str, Any], cells: Mapping[str, Any]) -> Any:
        """Return the files that the messages of a row name for an input."""
        described = self.inputs[name]
        dialogue = given.get(described.fallback_input or "")
        value = described.read(cells) if dialogue is None else dialogue
        try:
            return file_parts(value, described.type, described.max_items)
        except InvalidInputError as error:
            raise error.for_input(name) from None

    def rows_of(self, frame: "pd.DataFrame") -> list[dict[str, Any]]:
        """Return the rows of a frame without missing cells; numbers in the columns of texts become texts, as in csv."""
        if not frame.columns.is_unique:
            twice = frame.columns[frame.columns.duplicated()][0]
            raise InvalidInputError(f"the frame has two columns `{twice}`; remove one of them")
        self._log_ignored(frame.columns)
        known = frame[[column for column in frame.columns if column in self.keys]]
        table = known.astype(object)
        for column in known.columns:
            if self._holds_texts(column):
                table[column] = numbers_to_texts(known[column])
        present = known.notna().to_numpy()
        return [
            {column: value for column, value, ok in zip(table.columns, cells, keep, strict=True) if ok}
            for cells, keep in zip(table.itertuples(index=False, name=None), present, strict=True)
        ]

    def _log_ignored(self, keys: Iterable[Any]) -> None:
        if _log.isEnabledFor(logging.DEBUG):
            ignored = [str(key) for key in keys if key not in self.inputs and key not in self._owners]
            if ignored:
                _log.debug("columns that the model does not read: %s", ", ".join(ignored))

    def _is_named(self, name: str, given: Mapping[str, Any]) -> bool:
        """Return whether the key `name` of a row is the value of this input, not one of the columns."""
        if name not in given:
            return False
        if name in self.inputs[name].columns:
            return self.inputs[name].is_flat and isinstance(given[name], Mapping)
        return name not in self._owners or given.keys() <= self.inputs.keys()

    def _reject_columns_of(self, name: str, cells: Mapping[str, Any]) -> None:
        """Raise InvalidInputError if the row also has columns that no other input reads."""
        twice = [column for column in self.inputs[name].columns if column in cells]
        twice = [column for column in twice if self._owners[column] == [name]]
        if twice:
            columns = ", ".join(f"`{column}`" for column in twice)
            raise InvalidInputError(f"given both as `{name}` and as {columns}; give one of them", name)

    def _shares_columns(self, described: InputDescription) -> bool:
        fallback = self.inputs.get(described.fallback_input or "")
        return fallback is not None and fallback.columns.keys() == described.columns.keys()

    def _holds_texts(self, key: Any) -> bool:
        readers = self._owners.get(key) or ([key] if key in self.inputs else [])
        return any("text" in self.inputs[name].formats for name in readers)

    @staticmethod
    def _parse_named(described: InputDescription, value: Any) -> Any:
        holds_json = "text" not in described.formats and "json" in described.formats
        is_json = isinstance(value, str) and (holds_json or described.max_items > 1)
        return parse_json(value) if is_json else value

    def _load_items(self, name: str, value: Any, folder: str | None) -> Any:
        if self.inputs[name].max_items == 1:
            return self._load_item(name, value, folder)
        items = list(value) if is_instance_of(value, "numpy", "ndarray") else value
        if not isinstance(items, (list, tuple)):
            most = self.inputs[name].max_items
            raise InvalidInputError(
                f"expected a list of up to {most} values, not {type(items).__name__}", name
            )
        return [self._load_item(name, item, folder) for item in items]

    def _load_item(self, name: str, value: Any, folder: str | None) -> Any:
        value = to_raw_value(value, is_media=self.inputs[name].formats == ("file",))
        if "file" not in self.inputs[name].formats:
            return value
        value = file_reference(_decode_request_file(name, value))
        if folder is None and isinstance(value, str) and not is_data_uri(value):
            raise InvalidInputError(
                "expected the bytes of a file, got a path or URL; give the bytes, or load the model with "
                'model_config={"media_folder": FOLDER} to read files that trusted rows name',
                name,
            )
        return read_reference(name, value, folder or "")


def numbers_to_texts(column: "pd.Series") -> "pd.Series":
    """Return the column of a text input as objects: pandas reads the texts of a csv file as numbers if all of them are."""
    from rayfuse.modalities.vocabulary import canonical_name

    values = column.astype(object)
    is_numeric = getattr(column.dtype, "kind", "") in ("i", "u", "f")
    return values.map(canonical_name, na_action="ignore") if is_numeric else values


def explain_unknown_input(name: str, inputs: Mapping[str, "Input"]) -> str:
    """Return the error of a request with a name that is not an input, which may be a column of one."""
    owners = [owner for owner, options in inputs.items() if name in options.source_columns]
    if owners and inputs[owners[0]].reads_mapping:
        return f'not an input of this model, but a column of `{owners[0]}`: give {{"{owners[0]}": {{"{name}": …}}}}'
    if owners:
        return f"not an input of this model, but the column of `{owners[0]}`: give `{owners[0]}`"
    return f"not an input of this model; it has: {', '.join(inputs)}"


def _decode_request_file(name: str, value: Any) -> Any:
    """Return the content or URL of a file in the form of HTTP requests; other values unchanged."""
    if not isinstance(value, dict) or len(value) != 1:
        return value
    [(key, content)] = value.items()
    if not isinstance(content, str) or key not in ("b64", "url"):
        return value
    if key == "url":
        return content
    try:
        return decode_base64(content)
    except ValueError as error:
        raise InvalidInputError(f"b64: {error}", name) from None
