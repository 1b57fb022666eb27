"""One code path from a value to features: used for rows in training and for requests in serving."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayfuse.data.files import beside, read_file
from rayfuse.data.rows import Row, is_missing
from rayfuse.errors import BadInput, MissingInput
from rayfuse.modalities import Features, build_modality
from rayfuse.spec.inputs import Input
from rayfuse.spec.tasks import Task


@dataclass(frozen=True, slots=True)
class Sample:
    """What a model reads of one row or request. An input that is absent has no entry."""

    features: dict[str, Features]
    keys: dict[str, bytes]
    """Equal keys mean equal features, so that a batch encodes them once."""
    targets: dict[str, float]

    @property
    def size(self) -> int:
        """Bytes of all features."""
        return sum(array.nbytes for features in self.features.values() for array in features.values())


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
        for name, value in self._present(self._row_values(row)).items():
            self._decode(name, value)
            digest.update(name.encode() + b"\0" + _key(value))
        digest.update(repr(self._targets(row)).encode())
        return digest.digest()

    def _sample(self, values: dict[str, Any], targets: dict[str, float]) -> Sample:
        present = self._present(values)
        features = {
            name: self.modalities[name].process(self._decode(name, value)) for name, value in present.items()
        }
        return Sample(features, {name: _key(value) for name, value in present.items()}, targets)

    def _present(self, values: Mapping[str, Any]) -> dict[str, Any]:
        present = {name: value for name, value in values.items() if not is_missing(value)}
        for name, options in self.inputs.items():
            if name not in present and not options.optional:
                raise MissingInput(f"{name}: missing, and this input is required")
        if not present:
            raise MissingInput(f"no input given; this model reads: {', '.join(self.inputs)}")
        return present

    def _decode(self, name: str, value: Any) -> Any:
        try:
            return self.modalities[name].decode(value)
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None

    def _row_values(self, row: Row) -> dict[str, Any]:
        """The inputs of a row as `decode` wants them."""
        return {
            name: _file_content(name, row.values.get(options.column), row.folder)
            if self.modalities[name].from_file
            else row.values.get(options.column)
            for name, options in self.inputs.items()
        }

    def _targets(self, row: Row) -> dict[str, float]:
        targets = {}
        for name, task in self.tasks.items():
            try:
                targets[name] = task.target(row.values.get(task.column))
            except BadInput as error:
                raise BadInput(f"{name} (column {task.column}): {error}") from None
        return targets


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
