"""Frozen encoders run once: before training, each distinct value that the cache lacks is encoded and added to it.

    CACHE/IDENTITY/…   the shards of one encoder (see rayfuse.data.shards), by what its outputs depend on

Workers share the work and wait for one another, so that in training either all of them run an encoder, or none does.
"""

import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from rayfuse.data.ahead import prefetch
from rayfuse.data.encoded import WORD_STARTS, Encoded, EncodedValues
from rayfuse.data.rows import Row
from rayfuse.data.samples import SampleMaker, content_key
from rayfuse.data.shards import ABSENT, KEY_BYTES, Made, Places, ShardFolder
from rayfuse.errors import BadInput, DataError, MissingInput, ResourceError
from rayfuse.modalities import Features
from rayfuse.model.encoders import Encoder, build_encoder
from rayfuse.model.encoders.identity import encoder_identity, identity_digest
from rayfuse.spec.cache import augmented_though_frozen, cache_url, cached_inputs
from rayfuse.spec.job import Job
from rayfuse.train.precision import DTYPES

Splits = Mapping[str, Sequence[Row]]
Say = Callable[[str], None]

_READERS = 8
"""Threads that read and decode values."""
_ROWS_AHEAD = 1024
_CHUNK, _CHUNK_BYTES = 2048, 32 << 20
"""Values whose features are in memory at a time, in three such chunks; those of one shape are encoded together."""
_BATCH = 64
_ROUND = 1024
"""Values that each worker encodes before they wait for one another: none waits longer than a collective allows."""
_SHARD_BYTES = 64 << 20
_SHARD_SECONDS = 60.0
"""A shard is written when it has so many bytes or is so old: what a killed worker loses."""


@dataclass(frozen=True)
class _Ranks:
    rank: int
    world: int

    def gather(self, mine: Any) -> list[Any]:
        """What each worker has, in the order of their ranks; all must call it."""
        if self.world == 1:
            return [mine]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, mine)
        return found

    def of_first(self, make: Callable[[], Any]) -> Any:
        """What the first worker makes; all must call it."""
        found = [make() if self.rank == 0 else None]
        if self.world > 1:
            torch.distributed.broadcast_object_list(found, src=0)
        return found[0]


def encode_frozen(
    job: Job, splits: Splits, rank: int, world: int, device: torch.device, precision: str, say: Say
) -> Encoded:
    """What the encoders that `spec.cache.cached_inputs` names make of all rows; all workers must call it.

    Each encoder is built, where the cache lacks any value, and dropped again: call it before the model is made, and
    set the seed of its weights after it. Only the first worker says anything. Raises DataError for a value that
    cannot be read any more, ResourceError or NotReachable where the cache cannot be written.
    """
    ranks = _Ranks(rank, world)
    tell = say if rank == 0 else _silent
    for name in augmented_though_frozen(job) if job.data.cache != "off" else []:
        tell(f"cache: {name} is encoded anew every time: inputs.{name}.augment changes its training rows")
    encoded = Encoded(numbers={split: {} for split in splits})
    for name in cached_inputs(job):
        values, numbers = _Pass(job, name, splits, ranks, device, precision, tell).run()
        if values is not None:
            encoded.values[name] = values
            for split, of_split in numbers.items():
                encoded.numbers[split][name] = of_split
    return encoded


def _silent(line: str) -> None:
    pass


class _Pass:
    """One input: which values its rows have, which of them the cache lacks, and what the encoder makes of those."""

    def __init__(
        self,
        job: Job,
        name: str,
        splits: Splits,
        ranks: _Ranks,
        device: torch.device,
        precision: str,
        say: Say,
    ) -> None:
        self.name, self.options = name, job.inputs[name]
        self.splits, self.ranks, self.device, self.precision, self.say = splits, ranks, device, precision, say
        self.maker = SampleMaker({name: self.options})
        numbers = precision if precision == "fp32" else f"{precision} on {device.type}"
        identity = ranks.of_first(lambda: encoder_identity(self.options, numbers))
        self.folder = ShardFolder(f"{cache_url(job)}/{identity_digest(identity)}")
        if ranks.rank == 0:
            self.folder.describe(identity)

    def run(self) -> tuple[EncodedValues | None, dict[str, np.ndarray]]:
        """The encoded values, None where there are none, and by split which of them each row has."""
        keys = {split: self._keys(rows) for split, rows in self.splits.items()}
        whole = np.concatenate([of_split.reshape(-1) for of_split in keys.values()])
        distinct, first, numbers = np.unique(whole, return_index=True, return_inverse=True)
        given = distinct != b""  # of rows with fewer items than others; it sorts first
        distinct, first, numbers = distinct[given], first[given], numbers.reshape(-1) - (~given).sum()
        lacking = self.ranks.of_first(lambda: self._lacking(distinct))
        if len(lacking):
            started = time.perf_counter()
            self._encode(distinct[lacking], self._origins(first[lacking], keys))
            self.say(
                f"cache: {self.name}: {len(lacking)} values added in {time.perf_counter() - started:.1f} s"
            )
        places = self.folder.find(distinct)
        self._check_whole(places)
        if places.form is None:
            return None, {}
        for shard in places.shards:
            shard.fetch()
        present = np.append(places.length != ABSENT, False)  # the last: of -1
        numbers = np.where(present[numbers], numbers, -1).astype(np.int32)
        return EncodedValues(places), _apart(numbers, keys)

    def _lacking(self, distinct: np.ndarray) -> np.ndarray:
        """Which of the values no shard has."""
        problems: list[str] = []
        places = self.folder.find(distinct, problems)
        for problem in problems:
            self.say(f"WARNING cache: {problem}")
        self.say(
            f"cache: {self.name} {int(places.known.sum())} of {len(distinct)} values known, "
            f"{_size(places.nbytes)} at {self.folder.url}"
        )
        return np.flatnonzero(~places.known)

    def _check_whole(self, places: Places) -> None:
        gone = int((~places.known).sum())
        if gone:
            raise DataError(
                f"data.cache: {self.folder.url}: {gone} values of `{self.name}` are not there, though they have just "
                "been looked up or written; name a folder that all workers share, and from which nobody deletes; or write `cache: off`"
            )

    def _keys(self, rows: Sequence[Row]) -> np.ndarray:
        """Content hashes of a split's values, S16 (rows, items), of which each worker reads its part."""
        mine = np.zeros(
            (len(range(self.ranks.rank, len(rows), self.ranks.world)), self.options.max_items),
            f"S{KEY_BYTES}",
        )
        own = (rows[number] for number in range(self.ranks.rank, len(rows), self.ranks.world))
        for place, found in enumerate(_in_threads(self._row_keys, own, _ROWS_AHEAD)):
            mine[place, : len(found)] = found
        parts = self.ranks.gather(mine)
        whole = np.zeros((len(rows), self.options.max_items), mine.dtype)
        for rank, part in enumerate(parts):
            whole[rank :: self.ranks.world] = part
        return whole

    def _row_keys(self, row: Row) -> list[bytes]:
        return [content_key(value) for value in self._items(row)]

    def _items(self, row: Row) -> list[Any]:
        try:
            return self.maker.raw_items(self.name, row)
        except BadInput as error:
            raise DataError(f"{row.origin}: {error}; it could be read when the run began") from None

    def _origins(self, places: np.ndarray, keys: Mapping[str, np.ndarray]) -> list[tuple[str, int, int]]:
        """Split, row and item of values by their place among all items of all splits."""
        origins = []
        for place in places.tolist():
            for split, of_split in keys.items():
                if place < of_split.size:
                    origins.append((split, *divmod(place, of_split.shape[1])))
                    break
                place -= of_split.size
        return origins

    def _encode(self, keys: np.ndarray, origins: list[tuple[str, int, int]]) -> None:
        """Encode the values that start at `origins`, each worker a part, and add them to the folder.

        Other runs may be about the same: each begins at another value and looks now and then at what is there by now.
        """
        encoder = build_encoder(self.options).to(self.device).eval().requires_grad_(False)
        writer = _Writer(self.folder, encoder.width)
        left = np.roll(np.arange(len(keys)), self.ranks.of_first(lambda: secrets.randbelow(len(keys))))
        roomy, looked = False, time.monotonic()
        while len(left):
            part, left = left[: _ROUND * self.ranks.world], left[_ROUND * self.ranks.world :]
            for numbers, features in prefetch(
                self._chunks(part[self.ranks.rank :: self.ranks.world], origins), 1
            ):
                made = self._make(encoder, [bytes(keys[number]) for number in numbers], features)
                if not roomy:
                    self._check_room(made, len(keys))
                    roomy = True
                writer.add(made)
            self.ranks.gather(None)
            look = self.ranks.of_first(lambda: time.monotonic() - looked >= _SHARD_SECONDS)  # noqa: B023 - called at once
            if look and len(left):
                known = self.ranks.of_first(lambda: self.folder.find(keys).known)
                left, looked = left[~known[left]], time.monotonic()
        writer.flush()
        self.ranks.gather(None)

    def _chunks(
        self, numbers: np.ndarray, origins: list[tuple[str, int, int]]
    ) -> Iterator[tuple[list[int], list[Features | None]]]:
        """What the encoder reads of the values `numbers`, as many at a time as memory should hold."""
        chunk: tuple[list[int], list[Features | None]] = ([], [])
        size = 0
        own = (origins[number] for number in numbers)
        for number, features in zip(
            numbers.tolist(), _in_threads(self._features, own, 4 * _READERS), strict=True
        ):
            chunk[0].append(number)
            chunk[1].append(features)
            size += sum(array.nbytes for array in (features or {}).values())
            if size >= _CHUNK_BYTES or len(chunk[0]) == _CHUNK:
                yield chunk
                chunk, size = ([], []), 0
        if chunk[0]:
            yield chunk

    def _make(self, encoder: Encoder, keys: list[bytes], features: list[Features | None]) -> list[Made]:
        """What the encoder makes of some values; one without features holds nothing of the input."""
        encoded = iter(self._run(encoder, [found for found in features if found is not None]))
        return [
            Made(key, None) if found is None else Made(key, next(encoded), found.get(WORD_STARTS))
            for key, found in zip(keys, features, strict=True)
        ]

    def _features(self, origin: tuple[str, int, int]) -> Features | None:
        """What the encoder reads of a value; None where the value holds nothing of the input."""
        split, number, item = origin
        row, modality = self.splits[split][number], self.maker.modalities[self.name]
        value = self._items(row)[item]
        try:
            return modality.process(modality.decode(value))
        except MissingInput:
            return None
        except BadInput as error:
            raise DataError(
                f"{row.origin}: {self.name}: {error}; it could be read when the run began"
            ) from None

    def _run(self, encoder: Encoder, features: Sequence[Features]) -> list[torch.Tensor]:
        """The tokens of some values, float (tokens, width) each.

        Only values of one shape are encoded together: nothing is padded, so nothing depends on the neighbours.
        """
        read = [{key: array for key, array in one.items() if key != WORD_STARTS} for one in features]
        by_shape: dict[Any, list[int]] = {}
        for place, one in enumerate(read):
            by_shape.setdefault(tuple((key, array.shape) for key, array in one.items()), []).append(place)
        found: list[torch.Tensor] = [torch.empty(0)] * len(features)
        dtype, modality = DTYPES[self.precision], self.maker.modalities[self.name]
        autocast = torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), autocast:
            for alike in by_shape.values():
                for start in range(0, len(alike), _BATCH):
                    batch = alike[start : start + _BATCH]
                    stacked = modality.collate([read[place] for place in batch])
                    inputs = {key: torch.from_numpy(array).to(self.device) for key, array in stacked.items()}
                    tokens, mask = encoder(**inputs)
                    for place, vectors, counts in zip(batch, tokens.cpu(), mask.cpu(), strict=True):
                        found[place] = vectors[counts].clone()
        return found

    def _check_room(self, made: Sequence[Made], count: int) -> None:
        """Raise ResourceError where the folder is on a disk that has no room for `count` such values."""
        if "://" in self.folder.url or self.ranks.rank:
            return
        needed = sum(one.nbytes for one in made) / max(1, len(made)) * count
        free = shutil.disk_usage(self.folder.url).free
        if needed > free:
            raise ResourceError(
                f"data.cache: {count} values of `{self.name}` need about {_size(needed)}, and {_size(free)} are free "
                f"at {self.folder.url}; make room, name another folder, let the encoder pool its tokens (`pool: mean`), "
                "or write `cache: off`"
            )


class _Writer:
    """Gathers what was encoded into shards."""

    def __init__(self, folder: ShardFolder, width: int) -> None:
        self._folder, self._width = folder, width
        self._made: list[Made] = []
        self._since = time.monotonic()

    def add(self, made: Sequence[Made]) -> None:
        self._made += made
        if (
            sum(one.nbytes for one in self._made) >= _SHARD_BYTES
            or time.monotonic() - self._since > _SHARD_SECONDS
        ):
            self.flush()

    def flush(self) -> None:
        if self._made:
            self._folder.write(self._made, self._width)
        self._made, self._since = [], time.monotonic()


def _in_threads(work: Callable[[Any], Any], items: Iterator[Any], ahead: int) -> Iterator[Any]:
    """What `work` makes of each item, in their order; `ahead` of them are in memory at a time."""
    for first in items:
        yield work(
            first
        )  # by itself: what is set up at the first call, such as a tokenizer, is not set up twice
        break
    with ThreadPoolExecutor(_READERS) as pool:
        while part := list(islice(items, ahead)):
            yield from pool.map(work, part)


def _apart(numbers: np.ndarray, keys: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The numbers of all splits' items, one after the other → by split, (rows, items)."""
    borders = np.cumsum([of_split.size for of_split in keys.values()])[:-1]
    parts = np.split(numbers, borders)
    return {split: part.reshape(keys[split].shape) for split, part in zip(keys, parts, strict=True)}


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB"
