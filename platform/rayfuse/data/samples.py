"""One code path from a value to features: used for rows in training and for requests in serving."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayfuse.data.files import beside, read_file
from rayfuse.data.rows import Row, is_missing
from rayfuse.errors import BadInput, MissingInput
from rayfuse.modalities import MODALITIES, Features, build_modality
from rayfuse.spec.inputs import Input
from rayfuse.spec.tasks import Target, Task


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
        """Bytes of all features."""
        items = (item for values in self.features.values() for item in values)
        return sum(array.nbytes for features in items for array in features.values())


class SampleMaker:
    """Decodes and processes the inputs of a job."""

    def __init__(self, inputs: Mapping[str, Input], tasks: Mapping[str, Task] | None = None) -> None:
        self.inputs = dict(inputs)
        self.tasks = dict(tasks or {})
        self.modalities = {name: build_modality(options) for name, options in inputs.items()}

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
        return self._sample({name: values.get(name) for name in self.inputs}, {})

    def check(self, row: Row) -> bytes:
        """Open every value of a row without processing it, and return a hash of what a model would learn from it.

        Raises BadInput where a value cannot be used.
        """
        digest = hashlib.blake2b(digest_size=16)
        values = self._row_values(row)
        for name in self._decoded(values):
            digest.update(name.encode() + b"\0" + b"".join(map(_key, self._items(name, values[name]))))
        digest.update(repr(self._targets(row)).encode())
        return digest.digest()

    def _sample(self, values: Mapping[str, Any], targets: dict[str, Target]) -> Sample:
        decoded = self._decoded(values)
        features = {
            name: [self.modalities[name].process(item) for item in items] for name, items in decoded.items()
        }
        keys = {name: list(map(_key, self._items(name, values[name]))) for name in decoded}
        return Sample(features, keys, targets)

    def _decoded(self, values: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The items of the inputs that are there, opened. Raises MissingInput where one that is required is not."""
        given = {name: self._items(name, values.get(name)) for name in self.inputs}
        present = {name: items for name, items in given.items() if items}
        for name, options in self.inputs.items():
            if name not in present and not options.optional:
                raise MissingInput(f"{name}: missing, and this input is required")
        if not present:
            raise MissingInput(f"no input given; this model reads: {', '.join(self.inputs)}")
        return {name: self._decode(name, items) for name, items in present.items()}

    def _items(self, name: str, value: Any) -> list[Any]:
        """The values of an input: none, one, or a list of several where it takes them."""
        if is_missing(value):
            return []
        most = self.inputs[name].max_items
        if most == 1:
            return [value]
        if not isinstance(value, (list, tuple)):
            raise BadInput(f"{name}: a list of up to {most} values belongs here, not {type(value).__name__}")
        items = [item for item in value if not is_missing(item)]
        if len(items) > most:
            raise BadInput(f"{name}: {len(items)} values; at most {most} are read (inputs.{name}.max_items)")
        return items

    def _decode(self, name: str, items: list[Any]) -> list[Any]:
        try:
            return [self.modalities[name].decode(item) for item in items]
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None

    def _row_values(self, row: Row) -> dict[str, Any]:
        """The inputs of a row as `decode` wants them."""
        return {name: row_value(name, options, row) for name, options in self.inputs.items()}

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
    value = row.values.get(options.column)
    if not MODALITIES[options.type].from_file:
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


def _key(value: Any) -> bytes:
    """A hash of a raw value."""
    content = value if isinstance(value, bytes) else repr(value).encode()
    return hashlib.blake2b(content, digest_size=16).digest()
