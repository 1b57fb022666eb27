"""Feature cache: before training, each distinct value that the cache lacks is encoded once by its frozen encoder.

    CACHE/FINGERPRINT/…   shards of one encoder (see rayfuse.data.encoding_store), by what its outputs depend on

Workers divide the values and wait for one another, so that in training either all of them run an encoder, or none.
"""

import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch

from rayfuse.data.cached_features import (
    WORD_STARTS,
    CachedFeatures,
    CachedFeaturesModality,
    replace_modality,
)
from rayfuse.data.encoding_store import ABSENT, Encoding, EncodingIndex, EncodingStore
from rayfuse.data.loader import prefetch
from rayfuse.data.rows import Row
from rayfuse.data.samples import KEY_BYTES, Preprocessor, changed_file_message, content_key
from rayfuse.data.store import RowDataset
from rayfuse.data.validation import content_keys_column
from rayfuse.errors import DataError, InvalidInputError, MissingInputError, ResourceError
from rayfuse.modalities import Features
from rayfuse.model.encoders import Encoder, build_encoder
from rayfuse.model.encoders.fingerprint import encoder_fingerprint, fingerprint_digest
from rayfuse.spec.feature_cache import (
    cached_inputs,
    feature_cache_url,
    frozen_augmented_inputs,
    with_cached_encoder,
)
from rayfuse.spec.job import Job
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.precision import DTYPES

Splits = Mapping[str, Sequence[Row]]
LogFn = Callable[[str], None]
Item = TypeVar("Item")
Result = TypeVar("Result")

_READER_THREADS = 8
"""Threads that read and decode values."""
_PREFETCH_ROWS = 1024
_CHUNK, _CHUNK_BYTES = 2048, 32 << 20
"""Limits of a chunk of features; up to three chunks are in memory, and the values of one shape are encoded together."""
_BATCH_SIZE = 64
_VALUES_PER_SYNC = 1024
"""Values that each worker encodes between two barriers, so that none waits longer than a collective allows."""
_SHARD_BYTES = 64 << 20
_SHARD_SECONDS = 60.0
"""Size and age at which a shard is written: the work that a killed worker loses."""


@dataclass(frozen=True)
class _ValueOrigin:
    """Place of a value in the rows."""

    split: str
    row: int
    item: int
    key: bytes


def encode_frozen_inputs(
    job: Job, splits: Splits, context: DistributedContext, precision: str, log: LogFn
) -> CachedFeatures:
    """Return the encoder outputs of all rows, for the inputs in `spec.feature_cache.cached_inputs`; a collective.

    Each encoder is built only if the cache lacks a value, and freed afterwards: call this before the model is built,
    and seed its weights after it. Only the first worker logs. Raises DataError if a value has become unreadable,
    ResourceError or UnavailableError if the cache cannot be written.
    """
    log_rank_zero = log if context.is_main else _discard
    for name in frozen_augmented_inputs(job) if job.data.feature_cache != "off" else []:
        log_rank_zero(
            f"cache: {name} is not cached: inputs.{name}.augment changes its training rows in each epoch"
        )
    encoded = CachedFeatures(value_indices={split: {} for split in splits})
    for name in cached_inputs(job):
        builder = _InputCacheBuilder(job, name, splits, context, precision, log_rank_zero)
        values, indices = builder.run()
        if values is not None:
            encoded.modalities[name] = replace_modality(job.inputs[name], values)
            for split, of_split in indices.items():
                encoded.value_indices[split][name] = of_split
    return encoded


def _discard(line: str) -> None:
    pass


class _InputCacheBuilder:
    """Cache of one input: finds the distinct values of its rows, and encodes those that are missing."""

    def __init__(
        self,
        job: Job,
        name: str,
        splits: Splits,
        context: DistributedContext,
        precision: str,
        log: LogFn,
    ) -> None:
        self.name, self.options, self.splits = name, with_cached_encoder(job.inputs[name]), splits
        self.context, self.device, self.precision, self.log = context, context.device, precision, log
        self.preprocessor = Preprocessor({name: self.options})
        arithmetic = precision if precision == "fp32" else f"{precision} on {self.device.type}"
        fingerprint = context.compute_on_main(lambda: encoder_fingerprint(self.options, arithmetic))
        self.store = EncodingStore(f"{feature_cache_url(job)}/{fingerprint_digest(fingerprint)}")
        if context.is_main:
            self.store.write_metadata(fingerprint)

    def run(self) -> tuple[CachedFeaturesModality | None, dict[str, np.ndarray]]:
        """Return the cached values, None if there are none, and by split the values of each row: int32 (rows, items)."""
        keys = {split: self._content_keys(rows) for split, rows in self.splits.items()}
        flat = np.concatenate([of_split.reshape(-1) for of_split in keys.values()])
        distinct, first, indices = np.unique(flat, return_index=True, return_inverse=True)
        given = distinct != b""  # padding of rows with fewer items; it sorts first
        distinct, first, indices = distinct[given], first[given], indices.reshape(-1) - (~given).sum()
        missing = self.context.compute_on_main(lambda: self._find_missing(distinct))
        if len(missing):
            started = time.perf_counter()
            self._encode_missing(distinct[missing], self._locate_items(first[missing], keys))
            self.log(
                f"cache: {self.name}: {len(missing)} values added in {time.perf_counter() - started:.1f} s"
            )
        found = self.store.lookup(distinct)
        self._check_complete(found)
        if found.token_format is None:
            return None, {}
        for shard in found.shards:
            shard.download()
        present = np.append(found.token_counts != ABSENT, False)  # the last entry is for index -1
        indices = np.where(present[indices], indices, -1).astype(np.int32)
        return CachedFeaturesModality(found), _unflatten_by_split(indices, keys)

    def _find_missing(self, distinct: np.ndarray) -> np.ndarray:
        """Return the indices of the values that no shard has."""
        warnings: list[str] = []
        found = self.store.lookup(distinct, warnings)
        for warning in warnings:
            self.log(f"WARNING cache: {warning}")
        self.log(
            f"cache: {self.name} {int(found.is_cached.sum())} of {len(distinct)} values cached, "
            f"{_format_megabytes(found.nbytes)} at {self.store.url}"
        )
        return np.flatnonzero(~found.is_cached)

    def _check_complete(self, found: EncodingIndex) -> None:
        num_missing = int((~found.is_cached).sum())
        if num_missing:
            raise DataError(
                f"data.feature_cache: {self.store.url}: {num_missing} values of `{self.name}` are missing, though they "
                "have just been found or written; use a folder that all workers share and from which nothing is "
                "deleted, or write `feature_cache: off`"
            )

    def _content_keys(self, rows: Sequence[Row]) -> np.ndarray:
        """Return the content hashes of a split's values, S16 (rows, items): those that validation stored, if any.

        Otherwise each worker reads and hashes a part of the rows.
        """
        stored = rows.get_column(content_keys_column(self.name)) if isinstance(rows, RowDataset) else None
        if stored is not None:
            return stored
        rank, world_size = self.context.rank, self.context.world_size
        part = range(rank, len(rows), world_size)
        own = np.zeros((len(part), self.options.max_items), f"S{KEY_BYTES}")
        own_rows = (rows[index] for index in part)
        for place, row_keys in enumerate(_threaded_map(self._row_keys, own_rows, _PREFETCH_ROWS)):
            own[place, : len(row_keys)] = row_keys
        keys = np.zeros((len(rows), self.options.max_items), own.dtype)
        for other, part_keys in enumerate(self.context.all_gather(own)):
            keys[other::world_size] = part_keys
        return keys

    def _row_keys(self, row: Row) -> list[bytes]:
        try:
            values = self.preprocessor.raw_items(self.name, row)
            return [content_key(self.preprocessor.modalities[self.name].content(value)) for value in values]
        except InvalidInputError as error:
            raise _changed_row_error(row, str(error)) from None

    def _locate_items(self, places: np.ndarray, keys: Mapping[str, np.ndarray]) -> list[_ValueOrigin]:
        """Return the origins of values by their places among all items of all splits."""
        origins = []
        for place in places.tolist():
            for split, of_split in keys.items():
                if place < of_split.size:
                    row, item = divmod(place, of_split.shape[1])
                    origins.append(_ValueOrigin(split, row, item, bytes(of_split[row, item])))
                    break
                place -= of_split.size
        return origins

    def _encode_missing(self, keys: np.ndarray, origins: list[_ValueOrigin]) -> None:
        """Encode values and add them to the store; each worker encodes a part.

        Concurrent runs may encode the same values: each starts at a random value, and regularly skips what is cached.
        """
        context = self.context
        encoder = build_encoder(self.options).to(self.device).eval().requires_grad_(False)
        writer = _ShardWriter(self.store, encoder.width)
        offset = context.compute_on_main(lambda: secrets.randbelow(len(keys)))
        left = np.roll(np.arange(len(keys)), offset)
        space_checked, last_lookup = False, time.monotonic()
        while len(left):
            count = _VALUES_PER_SYNC * context.world_size
            part, left = left[:count], left[count:]
            chunks = self._feature_chunks(part[context.rank :: context.world_size], origins)
            for indices, features in prefetch(chunks, 1):
                encodings = self._encode_chunk(encoder, [bytes(keys[index]) for index in indices], features)
                if not space_checked:
                    self._check_disk_space(encodings, len(keys))
                    space_checked = True
                writer.add(encodings)
            lookup_due = context.all_gather(time.monotonic() - last_lookup >= _SHARD_SECONDS)[0]
            if lookup_due and len(left):
                cached = context.compute_on_main(lambda: self.store.lookup(keys).is_cached)
                left, last_lookup = left[~cached[left]], time.monotonic()
        writer.flush()
        context.all_gather(None)

    def _feature_chunks(
        self, indices: np.ndarray, origins: list[_ValueOrigin]
    ) -> Iterator[tuple[list[int], list[Features | None]]]:
        """Yield the features of values in chunks of a limited size."""
        chunk: tuple[list[int], list[Features | None]] = ([], [])
        size = 0
        own = (origins[index] for index in indices)
        extracted = _threaded_map(self._extract_features, own, 4 * _READER_THREADS)
        for index, features in zip(indices.tolist(), extracted, strict=True):
            chunk[0].append(index)
            chunk[1].append(features)
            size += sum(array.nbytes for array in (features or {}).values())
            if size >= _CHUNK_BYTES or len(chunk[0]) == _CHUNK:
                yield chunk
                chunk, size = ([], []), 0
        if chunk[0]:
            yield chunk

    def _encode_chunk(
        self, encoder: Encoder, keys: list[bytes], features: list[Features | None]
    ) -> list[Encoding]:
        """Encode some values; one without features has no content for the input."""
        encoded = iter(self._forward(encoder, [found for found in features if found is not None]))
        return [
            Encoding(key, None) if found is None else Encoding(key, next(encoded), found.get(WORD_STARTS))
            for key, found in zip(keys, features, strict=True)
        ]

    def _extract_features(self, origin: _ValueOrigin) -> Features | None:
        """Read and process a value; None if it has no content for the input."""
        row, modality = self.splits[origin.split][origin.row], self.preprocessor.modalities[self.name]
        try:
            value = self.preprocessor.raw_item(self.name, row, origin.item)
            if (
                content_key(modality.content(value)).rstrip(b"\0") != origin.key
            ):  # NumPy strips zeros at the end
                raise DataError(changed_file_message(self.name, self.options, row))
            return modality.process(modality.decode(value))
        except MissingInputError:
            return None
        except InvalidInputError as error:
            prefix = "" if str(error).startswith(f"{self.name}: ") else f"{self.name}: "
            raise _changed_row_error(row, f"{prefix}{error}") from None

    def _forward(self, encoder: Encoder, features: Sequence[Features]) -> list[torch.Tensor]:
        """Return the tokens of some values, float (tokens, hidden_size) each.

        Only values of one shape are encoded together: without padding, an output does not depend on its neighbors.
        """
        encoder_inputs = [
            {key: array for key, array in one.items() if key != WORD_STARTS} for one in features
        ]
        by_shape: dict[tuple[tuple[str, tuple[int, ...]], ...], list[int]] = {}
        for place, one in enumerate(encoder_inputs):
            by_shape.setdefault(tuple((key, array.shape) for key, array in one.items()), []).append(place)
        found: list[torch.Tensor] = [torch.empty(0)] * len(features)
        dtype, modality = DTYPES[self.precision], self.preprocessor.modalities[self.name]
        autocast = torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), autocast:
            for same_shape in by_shape.values():
                for start in range(0, len(same_shape), _BATCH_SIZE):
                    batch = same_shape[start : start + _BATCH_SIZE]
                    stacked = modality.collate([encoder_inputs[place] for place in batch])
                    inputs = {key: torch.from_numpy(array).to(self.device) for key, array in stacked.items()}
                    tokens, mask = encoder(**inputs)
                    for place, vectors, is_token in zip(batch, tokens.cpu(), mask.cpu(), strict=True):
                        found[place] = vectors[is_token].clone()
        return found

    def _check_disk_space(self, encodings: Sequence[Encoding], count: int) -> None:
        """Raise ResourceError if the disk of a local folder has no space for `count` such values."""
        if "://" in self.store.url or not self.context.is_main:
            return
        needed = sum(one.nbytes for one in encodings) / max(1, len(encodings)) * count
        free = shutil.disk_usage(self.store.url).free
        if needed > free:
            raise ResourceError(
                f"data.feature_cache: {count} values of `{self.name}` need about {_format_megabytes(needed)}, and "
                f"{_format_megabytes(free)} are free at {self.store.url}; free some space, use another folder, let the "
                "encoder pool its tokens (`pool: mean`), or write `feature_cache: off`"
            )


class _ShardWriter:
    """Buffer of encodings that is written as a shard when it is large or old enough."""

    def __init__(self, store: EncodingStore, width: int) -> None:
        self._store, self._width = store, width
        self._pending: list[Encoding] = []
        self._last_flush = time.monotonic()

    def add(self, encodings: Sequence[Encoding]) -> None:
        self._pending += encodings
        is_full = sum(one.nbytes for one in self._pending) >= _SHARD_BYTES
        if is_full or time.monotonic() - self._last_flush > _SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            self._store.write(self._pending, self._width)
        self._pending, self._last_flush = [], time.monotonic()


def _changed_row_error(row: Row, reason: str) -> DataError:
    return DataError(f"{row.origin}: {reason}; the row was valid when the run started")


def _threaded_map(
    fn: Callable[[Item], Result], items: Iterator[Item], prefetch_size: int
) -> Iterator[Result]:
    """Map over items in threads, in order; up to `prefetch_size` results are in memory."""
    for first in items:
        yield fn(first)  # alone, so that what the first call sets up, such as a tokenizer, is set up once
        break
    with ThreadPoolExecutor(_READER_THREADS) as pool:
        while part := list(islice(items, prefetch_size)):
            yield from pool.map(fn, part)


def _unflatten_by_split(indices: np.ndarray, keys: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Split the indices of all items into those of each split: (rows, items)."""
    borders = np.cumsum([of_split.size for of_split in keys.values()])[:-1]
    parts = np.split(indices, borders)
    return {split: part.reshape(keys[split].shape) for split, part in zip(keys, parts, strict=True)}


def _format_megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"
