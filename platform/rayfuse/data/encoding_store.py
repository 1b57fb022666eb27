"""Append-only store of encoder outputs, in a folder at any fsspec URL.

    FOLDER/metadata.json      fingerprint of the encoder: its options, input, versions
    FOLDER/NAME.safetensors   a shard: some values, by one writer
        keys     uint8 (values, 16)                content hash of each value
        lengths  int32 (values,)                   number of tokens; -1 if the value has no content for the input
        words    int32 (values,)                   number of words; -1 if the value is not a list of words
        tokens   float (all tokens, hidden_size)   concatenated over the values
        word_starts  int32 (all words,)            first token of each word, concatenated over the values

Writers need no locks: each shard has a unique name and is written atomically. A value may be in several shards, which
are interchangeable. The index is the shards' own `keys`, read by listing the folder.
"""

import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from rayfuse.data.files import filesystem
from rayfuse.data.samples import KEY_BYTES
from rayfuse.errors import DataError, RayfuseError, ResourceError, UnavailableError

ABSENT = -1
"""Token count of a value without content for its input."""
NO_WORDS = -1
"""Word count of a value that is not a list of words."""

_SUFFIX = ".safetensors"
_METADATA_FILE = "metadata.json"
_HEADER_READ_BYTES = 4096
_MAX_HEADER_BYTES = 1 << 20
_READ_THREADS = 16
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I32": np.int32, "U8": np.uint8}
"""NumPy types of safetensors types; bfloat16, which NumPy lacks, is read as its bits."""


class CorruptShardError(ValueError):
    """Raised for a shard that is incomplete or was altered."""


@dataclass(frozen=True)
class Encoding:
    """Output of an encoder for one value."""

    key: bytes
    """Content hash: 16 bytes, of which NumPy drops trailing zeros."""
    tokens: torch.Tensor | None
    """float (tokens, hidden_size), without padding; None if the value has no content for the input."""
    word_starts: np.ndarray | None = None
    """int (words,): first token of each word of a list of words."""

    @property
    def nbytes(self) -> int:
        """Bytes of the key and the tokens."""
        return KEY_BYTES + (0 if self.tokens is None else self.tokens.nbytes)


@dataclass(frozen=True)
class _TensorInfo:
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset in the file, in bytes."""

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(DTYPES[self.dtype]).itemsize


class _ShardIndex(NamedTuple):
    """Values of a shard: keys, S16 (values,), lengths and words, int32 (values,)."""

    keys: np.ndarray
    lengths: np.ndarray
    words: np.ndarray


class EncodingShard:
    """Complete shard with the offsets of its arrays; small when pickled."""

    def __init__(self, fs: Any, path: str, size: int) -> None:
        """Read the header. Raises CorruptShardError."""
        self.fs, self.path, self.size = fs, path, size
        self._tensors = _read_header(fs, path, size)
        if not {"keys", "lengths", "words", "tokens", "word_starts"} <= self._tensors.keys():
            raise CorruptShardError("not a shard of a feature cache")

    def read_index(self) -> _ShardIndex:
        """Read the keys and counts of its values."""
        keys = np.ascontiguousarray(self._read("keys")).view(f"S{KEY_BYTES}").reshape(-1)
        return _ShardIndex(keys, self._read("lengths"), self._read("words"))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("tokens", "word_starts")}

    @property
    def token_format(self) -> tuple[int, str] | None:
        """Hidden size and dtype of its tokens; None without tokens."""
        tokens = self._tensors["tokens"]
        return (tokens.shape[1], tokens.dtype) if tokens.shape[0] else None

    def _read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        content = self.fs.cat_file(self.path, tensor.start, tensor.start + tensor.nbytes)
        return np.frombuffer(content, DTYPES[tensor.dtype]).reshape(tensor.shape)

    def download(self) -> None:
        """Download a remote shard to this machine unless it is there."""
        _ = self._local_path

    @cached_property
    def tokens(self) -> np.ndarray:
        """Memory-mapped tokens: (all tokens, hidden_size)."""
        return self._memmap("tokens")

    @cached_property
    def word_starts(self) -> np.ndarray:
        """Memory-mapped word starts: int32 (all words,)."""
        return self._memmap("word_starts")

    def _memmap(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        if not tensor.nbytes:  # an empty range cannot be mapped
            return np.empty(tensor.shape, DTYPES[tensor.dtype])
        return np.asarray(np.memmap(self._local_path, DTYPES[tensor.dtype], "r", tensor.start, tensor.shape))

    @cached_property
    def _local_path(self) -> str:
        protocols = self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,)
        return self.path if "file" in protocols else str(_download(self.fs, self.path, self.size))


def _read_header(fs: Any, path: str, size: int) -> dict[str, _TensorInfo]:
    """Read the header of a safetensors file. Raises CorruptShardError if it does not match the size of the file."""
    head = fs.cat_file(path, 0, min(size, _HEADER_READ_BYTES))
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8 or not 0 < length <= min(size - 8, _MAX_HEADER_BYTES):
        raise CorruptShardError("truncated header")
    if 8 + length > len(head):
        head = fs.cat_file(path, 0, 8 + length)
    try:
        content = json.loads(head[8 : 8 + length])
        described = {name: about for name, about in content.items() if name != "__metadata__"}
        found = {
            name: _TensorInfo(about["dtype"], tuple(about["shape"]), 8 + length + about["data_offsets"][0])
            for name, about in described.items()
        }
        end = max(8 + length + about["data_offsets"][1] for about in described.values())
        consistent = all(tensor.start + tensor.nbytes <= end for tensor in found.values())
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CorruptShardError(f"invalid header: {type(error).__name__}: {error}") from None
    if end != size or not consistent:
        raise CorruptShardError(f"{size} bytes instead of {end}")
    return found


def _download(fs: Any, path: str, size: int) -> Path:
    """Download a remote shard to a cache that the processes of this machine share; it may be deleted between runs."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rayfuse", "features")
    target = home / blake2b(fs.unstrip_protocol(path).encode(), digest_size=16).hexdigest()
    if not target.is_file() or target.stat().st_size != size:
        home.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=home)
        os.close(handle)
        try:
            fs.get_file(path, partial)
            os.replace(partial, target)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)
    return target


@dataclass
class EncodingIndex:
    """Places of values in shards: arrays with one entry per value."""

    shards: list[EncodingShard]
    """Shards that have any of the values."""
    shard_indices: np.ndarray
    """int32: index of the shard; -1 if no shard has the value."""
    token_offsets: np.ndarray
    """int64: first token in the shard."""
    token_counts: np.ndarray
    """int32: number of tokens; ABSENT if the value has no content for the input."""
    word_offsets: np.ndarray
    """int64: first word in the shard."""
    word_counts: np.ndarray
    """int32: number of words, or NO_WORDS."""

    @property
    def is_cached(self) -> np.ndarray:
        """Mask of the values that a shard has: bool."""
        return self.shard_indices >= 0

    @property
    def token_format(self) -> tuple[int, str] | None:
        """Hidden size and dtype of all tokens; None without tokens."""
        return next((shard.token_format for shard in self.shards if shard.token_format), None)

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens of the cached values."""
        width, dtype = self.token_format or (0, "F32")
        return int(self.token_counts.clip(min=0).sum()) * width * np.dtype(DTYPES[dtype]).itemsize


class EncodingStore:
    """Folder with the outputs of one encoder."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._path = filesystem(url)
        self._writer_id = secrets.token_hex(6)
        self._num_written = 0

    def write_metadata(self, metadata: dict[str, Any]) -> None:
        """Write the fingerprint of the encoder, as documentation, unless it is there."""
        if not self._fs.exists(f"{self._path}/{_METADATA_FILE}"):
            self._write_atomic(_METADATA_FILE, json.dumps(metadata, indent=1, sort_keys=True).encode())

    def write(self, encodings: Sequence[Encoding], hidden_size: int) -> None:
        """Write a shard. Raises ResourceError or UnavailableError if the folder cannot be written."""
        from safetensors.torch import save

        tokens = [one.tokens for one in encodings if one.tokens is not None]
        starts = [np.asarray(one.word_starts, np.int32) for one in encodings if one.word_starts is not None]
        content = {
            "keys": torch.frombuffer(
                bytearray(b"".join(one.key.ljust(KEY_BYTES, b"\0") for one in encodings)), dtype=torch.uint8
            ).reshape(-1, KEY_BYTES),
            "lengths": torch.tensor(
                [ABSENT if one.tokens is None else len(one.tokens) for one in encodings], dtype=torch.int32
            ),
            "words": torch.tensor(
                [NO_WORDS if one.word_starts is None else len(one.word_starts) for one in encodings],
                dtype=torch.int32,
            ),
            "tokens": torch.cat(tokens).contiguous() if tokens else torch.empty(0, hidden_size),
            "word_starts": torch.from_numpy(np.concatenate(starts) if starts else np.empty(0, np.int32)),
        }
        self._write_atomic(f"{self._writer_id}-{self._num_written:06d}{_SUFFIX}", save(content))
        self._num_written += 1

    def lookup(self, keys: np.ndarray, warnings: list[str] | None = None) -> EncodingIndex:
        """Find values by their keys, S16 (values,), sorted and distinct. Corrupt shards are reported in `warnings`."""
        count = len(keys)
        found = EncodingIndex(
            [],
            np.full(count, -1, np.int32),
            np.zeros(count, np.int64),
            np.zeros(count, np.int32),
            np.zeros(count, np.int64),
            np.full(count, NO_WORDS, np.int32),
        )
        for shard, index in self._iter_shards([] if warnings is None else warnings):
            _add_shard(shard, index, keys, found)
        formats = {shard.token_format for shard in found.shards if shard.token_format}
        if len(formats) > 1:
            raise DataError(
                f"data.feature_cache: {self.url}: its shards differ in hidden size or dtype: {sorted(formats)}; delete the folder"
            )
        return found

    def _iter_shards(self, warnings: list[str]) -> Iterator[tuple[EncodingShard, _ShardIndex]]:
        """Yield the complete shards in the order of their names."""

        def open_shard(entry: tuple[str, int]) -> tuple[EncodingShard, _ShardIndex] | None:
            path, size = entry
            try:
                shard = EncodingShard(self._fs, path, size)
                return shard, shard.read_index()
            except CorruptShardError as error:
                warnings.append(
                    f"{self._fs.unstrip_protocol(path)}: {error}; it is ignored and its values are encoded again; delete it"
                )
            except FileNotFoundError:
                pass  # deleted since it was listed
            return None

        entries = self._list_shards()
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            for start in range(0, len(entries), 4 * _READ_THREADS):  # `map` would read all of them at once
                for found in pool.map(open_shard, entries[start : start + 4 * _READ_THREADS]):
                    if found is not None:
                        yield found

    def _list_shards(self) -> list[tuple[str, int]]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(self._path, maxdepth=1, detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            raise DataError(
                f"data.feature_cache: {self.url}: cannot be read: {type(error).__name__}: {error}"
            ) from None
        return sorted((path, int(about["size"])) for path, about in found.items() if path.endswith(_SUFFIX))

    def _write_atomic(self, name: str, content: bytes) -> None:
        """Write a file completely or not at all."""
        path = f"{self._path}/{name}"
        partial = f"{path}.{secrets.token_hex(4)}.partial"
        try:
            self._fs.makedirs(self._path, exist_ok=True)
            self._fs.pipe_file(partial, content)
            self._fs.mv(partial, path)
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            raise self._to_write_error(error) from None

    def _to_write_error(self, error: Exception) -> RayfuseError:
        kind = UnavailableError if "://" in self.url else ResourceError
        return kind(
            f"data.feature_cache: {self.url}: cannot be written: {type(error).__name__}: {error}; "
            "use another folder, or write `feature_cache: off`"
        )


def _add_shard(
    shard: EncodingShard, index: _ShardIndex, keys: np.ndarray, encoding_index: EncodingIndex
) -> None:
    """Add the places of values that no shard before this one has."""
    if not len(keys) or not len(index.keys):
        return
    at = np.searchsorted(keys, index.keys).clip(max=len(keys) - 1)
    own = np.flatnonzero((keys[at] == index.keys) & (encoding_index.shard_indices[at] < 0))
    if not len(own):
        return
    at = at[own]
    shard_index = len(encoding_index.shards)
    encoding_index.shards.append(shard)
    lengths, words = index.lengths.clip(min=0).astype(np.int64), index.words.clip(min=0).astype(np.int64)
    encoding_index.shard_indices[at] = shard_index
    encoding_index.token_offsets[at] = (np.cumsum(lengths) - lengths)[own]
    encoding_index.token_counts[at] = index.lengths[own]
    encoding_index.word_offsets[at] = (np.cumsum(words) - words)[own]
    encoding_index.word_counts[at] = index.words[own]
