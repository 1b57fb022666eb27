"""One code path from a value to features: used for rows in training and for requests in serving."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rayfuse.data.files import beside, read_file
from rayfuse.data.rows import Row, is_missing
from rayfuse.errors import BadInput, MissingInput
from rayfuse.modalities import MODALITIES, Features, Modality, build_modality
from rayfuse.spec.inputs import Input
from rayfuse.spec.tasks import Target, Task

_OBJECTS = 500
"""Bytes of the Python objects around an array, or around a sample."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a model reads of one row or request. An input that is absent has no entry."""

    features: dict[str, list[Features]]
    """Of each item of an input: one, unless the input takes lists."""
    keys: dict[str, list[bytes]]
    """Equal keys mean equal features, so that a batch encodes them once."""
    targets: dict[str, Target]

    @property
    def size(self) -> int:
        """Bytes of all features, and of the objects that hold them."""
        items = (item for values in self.features.values() for item in values)
        return _OBJECTS + sum(_OBJECTS + array.nbytes for features in items for array in features.values())


@dataclass(frozen=True, slots=True)
class _Item:
    key: bytes
    decoded: Any


class Opened(NamedTuple):
    """A hash of what a model learns from a row, and the steps of its inputs that batches are padded along."""

    digest: bytes
    length: int


class SampleMaker:
    """Decodes and processes the inputs of a job, but for those that are `encoded` already."""

    def __init__(
        self,
        inputs: Mapping[str, Input],
        tasks: Mapping[str, Task] | None = None,
        encoded: Mapping[str, Modality] | None = None,
    ) -> None:
        self.inputs = dict(inputs)
        self.encoded = dict(encoded or {})
        self.tasks = dict(tasks or {})
        self.modalities = {
            name: self.encoded.get(name) or build_modality(options) for name, options in inputs.items()
        }

    def from_row(self, row: Row) -> Sample:
        """Features and targets of a row; raises BadInput that names the input or task."""
        return self._sample(self._row_values(row), self._targets(row))

    def from_values(self, values: Mapping[str, Any]) -> Sample:
        """Features of a request: bytes for inputs that are files, else the value itself.

        Raises BadInput for a name that is no input or a broken value, MissingInput for a required one.
        """
        for name in values:
            if name not in self.inputs:
                raise BadInput(f"{name}: not an input of this model; it has: {', '.join(self.inputs)}")
        return self._sample({name: self._given(name, values) for name in self.inputs}, {})

    def check(self, row: Row, measure: bool = False) -> "Opened":
        """Open every value of a row; with `measure`, count its steps as well. Raises BadInput where one cannot be used."""
        digest = hashlib.blake2b(digest_size=16)
        length = 0
        for name, items in self._opened(self._row_values(row)).items():
            digest.update(name.encode() + b"\0" + b"".join(item.key for item in items))
            if measure:
                length += sum(self.modalities[name].steps(item.decoded) for item in items)
        digest.update(repr(self._targets(row)).encode())
        return Opened(digest.digest(), length)

    def _given(self, name: str, values: Mapping[str, Any]) -> Any:
        """What a request gives for an input: a sound track is in its video, unless it is given by itself."""
        value = values.get(name)
        taken_from = self.inputs[name].taken_from
        return values.get(taken_from) if taken_from is not None and is_missing(value) else value

    def _sample(self, values: Mapping[str, Any], targets: dict[str, Target]) -> Sample:
        opened = self._opened(values)
        features = {
            name: [self.modalities[name].process(item.decoded) for item in items]
            for name, items in opened.items()
        }
        return Sample(
            features, {name: [item.key for item in items] for name, items in opened.items()}, targets
        )

    def _opened(self, values: Mapping[str, Any]) -> dict[str, list["_Item"]]:
        """The items of the inputs that are there. Raises MissingInput where one that is required is not."""
        given = {
            name: self._items(name, values.get(name)) for name in self.inputs if name not in self.encoded
        }
        for name, items in given.items():
            self._require(name, items, "missing")
        opened = {name: self._open(name, items) for name, items in given.items()}
        present = {name: items for name, items in opened.items() if items}
        if not present and not self.encoded:
            raise MissingInput(f"no input given; this model reads: {', '.join(self.inputs)}")
        return present

    def _open(self, name: str, values: list[Any]) -> list["_Item"]:
        """The items of an input that hold something of it; none where it is optional and absent."""
        items: list[_Item] = []
        why = "missing"
        for value in values:
            try:
                items.append(_Item(content_key(value), self.modalities[name].decode(value)))
            except MissingInput as absent:
                why = f"missing: {absent}"
            except BadInput as error:
                raise BadInput(f"{name}: {error}") from None
        self._require(name, items, why)
        return items

    def _require(self, name: str, items: list[Any], why: str) -> None:
        if not items and not self.inputs[name].optional:
            raise MissingInput(f"{name}: {why}, and this input is required")

    def _items(self, name: str, value: Any) -> list[Any]:
        """The values of an input: none, one, or a list of several where it takes them."""
        if is_missing(value):
            return []
        most = self.inputs[name].max_items
        if most == 1:
            return [_plain(value)]
        value = _plain(value)
        if not isinstance(value, (list, tuple)):
            raise BadInput(f"{name}: a list of up to {most} values belongs here, not {type(value).__name__}")
        items = [item for item in value if not is_missing(item)]
        if len(items) > most:
            raise BadInput(f"{name}: {len(items)} values; at most {most} are read (inputs.{name}.max_items)")
        return items

    def _row_values(self, row: Row) -> dict[str, Any]:
        """The inputs of a row as `decode` wants them."""
        return {
            name: row_value(name, options, row)
            for name, options in self.inputs.items()
            if name not in self.encoded
        }

    def raw_items(self, name: str, row: Row) -> list[Any]:
        """The raw values of an input in a row: the bytes of files, else what the row holds. Raises BadInput."""
        return self._items(name, row_value(name, self.inputs[name], row))

    def _targets(self, row: Row) -> dict[str, Target]:
        targets: dict[str, Target] = {}
        for name, task in self.tasks.items():
            try:
                targets[name] = task.read(row.values, self.inputs)
            except BadInput as error:
                raise BadInput(f"{name} (column {', '.join(task.columns)}): {error}") from None
        return targets


def row_value(name: str, options: Input, row: Row) -> Any:
    """The value of an input in a row: a file's bytes where it names one. Raises BadInput where that cannot be read."""
    value = options.read(row.values)
    if "file" not in MODALITIES[options.type].forms:
        return value
    if options.max_items > 1 and isinstance(value, (list, tuple)):
        return [_file_content(name, item, row.folder) for item in value]
    return _file_content(name, value, row.folder)


def _file_content(name: str, value: Any, folder: str) -> Any:
    """The bytes of the file that a row names; relative paths count from the row's folder."""
    if isinstance(value, dict) and {"bytes", "path"} >= value.keys():  # Hugging Face's table layout
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str):
        return value
    if not value:
        raise BadInput(f"{name}: the path is empty; an absent input is null")
    try:
        return read_file(beside(folder, value))
    except FileNotFoundError:
        raise BadInput(f"{name}: {value}: no such file") from None
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise BadInput(f"{name}: {value}: cannot be read: {type(error).__name__}: {error}") from None


def _plain(value: Any) -> Any:
    """Lists instead of the arrays that data frames hold, which compare and print otherwise."""
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], (list, dict, np.ndarray, np.generic)):
        return [_plain(inner) for inner in value]
    return value


def content_key(value: Any) -> bytes:
    """A hash of a raw value: 16 bytes."""
    content = value if isinstance(value, bytes) else repr(value).encode()
    return hashlib.blake2b(content, digest_size=16).digest()
