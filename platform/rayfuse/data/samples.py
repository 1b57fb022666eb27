"""Preprocessing from values to features, the same for rows in training and for requests in serving."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from rayfuse.data.base64_values import decode_data_uri, is_data_uri
from rayfuse.data.embedded_files import EmbeddedFile
from rayfuse.data.references import file_reference, read_reference
from rayfuse.data.row_adapter import explain_unknown_input
from rayfuse.data.rows import Row
from rayfuse.data.targets import target_reader
from rayfuse.errors import InvalidInputError, MissingInputError
from rayfuse.formatting import truncate_middle
from rayfuse.modalities import Features, Modality, build_modality, modality_class
from rayfuse.modalities.messages import count_files
from rayfuse.spec.base import is_missing
from rayfuse.spec.family import CustomConfig
from rayfuse.spec.inputs import ChatInput, Input
from rayfuse.spec.tasks import Target, TaskConfig

KEY_BYTES = 16
"""Bytes of a content hash."""

FileDecoder = Callable[[str, bytes], Features]
"""Decoder of the files of inputs by name, which returns `Modality.to_arrays` of the decoded value."""

_MAX_PATHS, _MAX_PATH_CHARS = 3, 200
_OBJECT_OVERHEAD_BYTES = 500
"""Bytes of the Python objects around an array, or around a sample."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Features and targets of one row or request. An absent input has no entry."""

    features: dict[str, list[Features]]
    """Features of each item, by input; one item unless the input takes lists."""
    keys: dict[str, list[bytes]]
    """Hash of each item, by input: equal keys imply equal features, so that a batch encodes them once."""
    targets: dict[str, Target]
    """Target of each task."""
    sources: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Passages that were found for inputs with `retrieve`, by input, as JSON; of requests only."""

    @property
    def nbytes(self) -> int:
        """Bytes of all features and of the objects that hold them."""
        items = (item for values in self.features.values() for item in values)
        return _OBJECT_OVERHEAD_BYTES + sum(
            _OBJECT_OVERHEAD_BYTES + array.nbytes for features in items for array in features.values()
        )


@dataclass(frozen=True, slots=True)
class _DecodedItem:
    position: int
    """Position among the values of the input."""
    key: bytes
    decoded: Any


class _DecodedElsewhere(NamedTuple):
    arrays: Features
    """Result of `Modality.to_arrays` in another process."""


class RowFingerprint(NamedTuple):
    """Hashes and length of a valid row."""

    digest: bytes
    """Hash of the content that a model learns from: 16 bytes."""
    length: int
    """Steps of all inputs along which batches are padded; 0 unless requested."""
    content_keys: dict[str, list[bytes]]
    """Content hash of each value, by input; empty for a value without content for its input."""
    targets: dict[str, Target]
    """Target of each task."""

    @property
    def present_inputs(self) -> set[str]:
        """Inputs for which the row has content: those that the model gets."""
        return set(self.content_keys)


class Preprocessor:
    """Decoder and processor of a job's inputs, except those in `cached_inputs`, whose features are cached.

    cached_modalities: by input with cached features, what replaces its modality.
    """

    def __init__(
        self,
        inputs: Mapping[str, Input],
        tasks: Mapping[str, TaskConfig] | None = None,
        cached_modalities: Mapping[str, Modality] | None = None,
    ) -> None:
        self.inputs = dict(inputs)
        replaced = cached_modalities or {}
        self.cached_inputs = {name for name in replaced if inputs[name].encoder.frozen}
        self.tasks = dict(tasks or {})
        self._target_readers = {name: target_reader(task, inputs) for name, task in self.tasks.items()}
        self.modalities = {
            name: replaced.get(name) or build_modality(options) for name, options in inputs.items()
        }

    def from_row(self, row: Row) -> Sample:
        """Return the features and targets of a row. Raises InvalidInputError with the input or task."""
        return self._sample(self._decode_inputs(self._row_values(row)), self.targets(row))

    @cached_property
    def isolated_inputs(self) -> set[str]:
        """Inputs whose files can be decoded in another process, without code of users."""
        built_in = {name for name, options in self.inputs.items() if not isinstance(options, CustomConfig)}
        return {name for name in built_in if self.modalities[name].is_isolated}

    def from_values(self, values: Mapping[str, Any], decode_file: FileDecoder | None = None) -> Sample:
        """Return the features of a request: bytes for inputs that are files, else the value itself.

        `decode_file`: decoder of the files of `isolated_inputs`, by default that of their modality.

        Raises InvalidInputError for an unknown name or an invalid value, MissingInputError without a required input.
        """
        for name in values:
            if name not in self.inputs:
                raise InvalidInputError(explain_unknown_input(name, self.inputs), name)
        found = {name: self._value_or_fallback(name, values) for name in self.inputs}
        decoded = self._decode_inputs(found, decode_file)
        sources = {
            name: [source for item in items for source in self.modalities[name].sources(item.decoded)]
            for name, items in decoded.items()
        }
        sample = self._sample(decoded, {})
        return replace(sample, sources={name: found for name, found in sources.items() if found})

    def fingerprint(self, row: Row, with_length: bool = False) -> RowFingerprint:
        """Decode and hash every value of a row, each read once; with `with_length`, also count its steps.

        Raises InvalidInputError if a value is invalid.
        """
        digest = hashlib.blake2b(digest_size=KEY_BYTES)
        length = 0
        content_keys: dict[str, list[bytes]] = {}
        for name, items in self._decode_inputs(self._row_values(row)).items():
            digest.update(name.encode() + b"\0" + b"".join(item.key for item in items))
            content_keys[name] = [b""] * (1 + max(item.position for item in items))
            for item in items:
                content_keys[name][item.position] = item.key
            if with_length:
                length += sum(self.modalities[name].num_steps(item.decoded) for item in items)
        targets = self.targets(row)
        digest.update(repr(targets).encode())
        return RowFingerprint(digest.digest(), length, content_keys, targets)

    def raw_items(self, name: str, row: Row) -> list[Any]:
        """Return the raw values of an input in a row: the bytes of files, else the values themselves.

        Raises InvalidInputError if a file cannot be read.
        """
        return self._split_items(name, row_value(name, self.inputs[name], row))

    def raw_item(self, name: str, row: Row, position: int) -> Any:
        """Return one of `raw_items` without reading the files of the others."""
        options = self.inputs[name]
        value = _read_columns(options, row)
        if not reads_files(options):
            return self._split_items(name, value)[position]
        references = value if options.max_items > 1 and isinstance(value, (list, tuple)) else [value]
        present = [item for item in map(file_reference, references) if not is_missing(item)]
        return _to_builtin(read_reference(name, present[position], row.folder))

    def _value_or_fallback(self, name: str, values: Mapping[str, Any]) -> Any:
        """Return the value of an input in a request: an audio track is in its video unless it is given itself."""
        value = values.get(name)
        fallback = self.inputs[name].fallback_input
        if fallback is None or not is_missing(value):
            return value
        found = self.inputs[name].of_fallback(values.get(fallback))
        return _decode_parts(name, found) if self.inputs[name].dialogue else found

    def _sample(self, decoded: Mapping[str, list[_DecodedItem]], targets: dict[str, Target]) -> Sample:
        features = {
            name: [self._process(name, item.decoded) for item in items] for name, items in decoded.items()
        }
        keys = {name: [item.key for item in items] for name, items in decoded.items()}
        return Sample(features, keys, targets)

    def _process(self, name: str, decoded: Any) -> Features:
        modality = self.modalities[name]
        if isinstance(decoded, _DecodedElsewhere):
            return modality.process_arrays(decoded.arrays)
        return modality.process(decoded)

    def _decode_inputs(
        self, values: Mapping[str, Any], decode_file: FileDecoder | None = None
    ) -> dict[str, list[_DecodedItem]]:
        """Return the items of the inputs that are present. Raises MissingInputError without a required input."""
        given = {
            name: self._split_items(name, values.get(name))
            for name in self.inputs
            if name not in self.cached_inputs
        }
        for name, items in given.items():
            self._check_required(name, items, "missing")
        decoded = {name: self._decode_items(name, items, decode_file) for name, items in given.items()}
        self._check_parts(decoded)
        present = {name: items for name, items in decoded.items() if items}
        if not present and not self.cached_inputs:
            raise MissingInputError(f"no input given; this model reads: {', '.join(self.inputs)}")
        return present

    def _check_parts(self, decoded: Mapping[str, Sequence[_DecodedItem]]) -> None:
        """Raise InvalidInputError if the files in messages are not those of the inputs that read them."""
        dialogues = [name for name, options in self.inputs.items() if isinstance(options, ChatInput)]
        for chat in dialogues:
            readers = {
                options.type: name for name, options in self.inputs.items() if options.dialogue == chat
            }
            for item in decoded.get(chat, ()):
                counts = count_files(item.decoded)
                for kind in counts.keys() - readers.keys():
                    known = f"those of type {', '.join(readers)}" if readers else "none"
                    raise InvalidInputError(
                        f"a message has a part of type {kind}, and this model reads {known}", chat
                    )
                for kind, name in readers.items():
                    given = len(decoded.get(name, ()))
                    if name not in self.cached_inputs and given != counts[kind]:
                        raise InvalidInputError(
                            f"{given} values, and the messages of `{chat}` have {counts[kind]} parts of type {kind}; give a "
                            "value for each part",
                            name,
                        )

    def _decode_items(
        self, name: str, values: list[Any], decode_file: FileDecoder | None
    ) -> list[_DecodedItem]:
        """Return the values that hold something of an input; none if it is optional and absent."""
        is_elsewhere = decode_file is not None and name in self.isolated_inputs
        items: list[_DecodedItem] = []
        reason = "missing"
        for position, value in enumerate(values):
            try:
                decoded: Any
                if is_elsewhere and isinstance(value, bytes):
                    assert decode_file is not None
                    decoded = _DecodedElsewhere(decode_file(name, value))
                else:
                    decoded = self.modalities[name].decode(value)
            except MissingInputError as error:
                reason = f"missing: {error}"
            except InvalidInputError as error:
                raise error.for_input(name) from None
            except MemoryError:
                raise InvalidInputError("takes more memory to decode than there is", name) from None
            else:
                content = self.modalities[name].content(value)
                items.append(_DecodedItem(position, content_key(content), decoded))
        self._check_required(name, items, reason)
        return items

    def _check_required(self, name: str, items: Sequence[Any], reason: str) -> None:
        if not items and not self.inputs[name].optional:
            raise MissingInputError(f"{reason}, and this input is required", name)

    def _split_items(self, name: str, value: Any) -> list[Any]:
        """Return the values of an input: none, one, or several if the input takes lists."""
        if is_missing(value):
            return []
        max_items = self.inputs[name].max_items
        if max_items == 1:
            return [_to_builtin(value)]
        value = _to_builtin(value)
        if not isinstance(value, (list, tuple)):
            raise InvalidInputError(
                f"expected a list of up to {max_items} values, not {type(value).__name__}", name
            )
        items = [item for item in value if not is_missing(item)]
        if len(items) > max_items:
            raise InvalidInputError(
                f"{len(items)} values are above the maximum of {max_items}; give fewer, or raise "
                f"inputs.{name}.max_items",
                name,
            )
        return items

    def _row_values(self, row: Row) -> dict[str, Any]:
        return {
            name: row_value(name, options, row)
            for name, options in self.inputs.items()
            if name not in self.cached_inputs
        }

    def targets(self, row: Row) -> dict[str, Target]:
        """Return the target of each task. Raises InvalidInputError with the task if one is missing or invalid."""
        targets: dict[str, Target] = {}
        for name, task in self.tasks.items():
            try:
                targets[name] = self._target_readers[name].read(row.values)
            except InvalidInputError as error:
                raise InvalidInputError(f"{name} (column {', '.join(task.columns)}): {error}") from None
        return targets


def _decode_parts(name: str, value: Any) -> Any:
    """Return the content of files that the messages of a request have; those that they name are not read."""
    if isinstance(value, list):
        return [_decode_parts(name, one) for one in value]
    if is_missing(value) or isinstance(value, bytes):
        return value
    if isinstance(value, str) and is_data_uri(value):
        try:
            return decode_data_uri(value)
        except ValueError as error:
            raise InvalidInputError(str(error), name) from None
    raise InvalidInputError(
        f"a part of a message must have its file as a data: URI; send other files as `{name}`", name
    )


def row_value(name: str, options: Input, row: Row) -> Any:
    """Return the value of an input in a row: the bytes of a file if the row holds its path or URL.

    Raises InvalidInputError if the file cannot be read.
    """
    value = _read_columns(options, row)
    if not reads_files(options):
        return value
    if options.max_items > 1 and isinstance(value, (list, tuple)):
        return [read_reference(name, file_reference(item), row.folder) for item in value]
    return read_reference(name, file_reference(value), row.folder)


def _read_columns(options: Input, row: Row) -> Any:
    value = options.read(row.values)
    return value.read() if isinstance(value, EmbeddedFile) else value


def content_key(value: Any) -> bytes:
    """Return the content hash of a raw value: 16 bytes."""
    content = value if isinstance(value, bytes) else repr(value).encode()
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


def content_digest(keys: Iterable[bytes]) -> int:
    """Return a hash of the content keys of all values of an input: 64 bits."""
    digest = hashlib.blake2b(b"".join(keys), digest_size=8).digest()
    return int.from_bytes(digest, sys.byteorder)


def changed_file_message(name: str, options: Input, row: Row) -> str:
    """Return why a row cannot be used: files of an input have other contents than when the rows were validated."""
    value = options.read(row.values)
    values = value if isinstance(value, (list, tuple)) else [value]
    found = [item.file if isinstance(item, EmbeddedFile) else file_reference(item) for item in values]
    paths = [truncate_middle(path, _MAX_PATH_CHARS) for path in dict.fromkeys(found) if isinstance(path, str)]
    shown = ", ".join(paths[:_MAX_PATHS]) + (" …" if len(paths) > _MAX_PATHS else "")
    return (
        f"{row.origin}: {name}: {shown or 'its file'} has changed since the run validated it; run the same command again to "
        "train on the current files"
    )


def reads_files(options: Input) -> bool:
    """Return whether values of an input are files, which rows may name by path or URL."""
    return "file" in modality_class(options).value_formats


def _to_builtin(value: Any) -> Any:
    """Convert arrays to lists, also inside lists and mappings: the text of a long array is abbreviated."""
    if isinstance(value, (np.ndarray, np.generic)):
        return _to_builtin(value.tolist())
    if isinstance(value, dict):
        return {name: _to_builtin(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)) and not (value and isinstance(value[0], (int, float, str))):
        return [_to_builtin(inner) for inner in value]
    return value
