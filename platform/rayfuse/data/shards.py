"""What frozen encoders made of values, in a folder at any fsspec URL that is only ever added to.

    FOLDER/about.json         what made it: encoder, input, versions
    FOLDER/NAME.safetensors   a shard: some values, by one writer
        keys     uint8 (values, 16)         content hash of each value
        lengths  int32 (values,)            its tokens; -1 where the value holds nothing of the input
        words    int32 (values,)            its words; -1 where it is no list of words
        tokens   float (all tokens, width)  one value after the other
        starts   int32 (all words,)         the token where each word begins, likewise

Writers need no locks: each shard has a name of its own, and appears whole or not at all. The same value may be in
several shards; any of them is right. The index is the shards' own `keys`, read by listing the folder.
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
from rayfuse.errors import DataError, NotReachable, RayfuseError, ResourceError

KEY_BYTES = 16
ABSENT = -1
"""The length of a value that holds nothing of its input."""
NO_WORDS = -1

_ENDING = ".safetensors"
_ABOUT = "about.json"
_HEADER_GUESS = 4096
_LONGEST_HEADER = 1 << 20
_READERS = 16
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I32": np.int32, "U8": np.uint8}
"""NumPy has no bfloat16: its bits travel as they are."""


class NotWhole(ValueError):
    """A shard that was cut off or altered."""


@dataclass(frozen=True)
class Made:
    """What an encoder made of one value."""

    key: bytes
    """16 bytes; NumPy drops zeros at the end."""
    tokens: torch.Tensor | None
    """float (tokens, width), those that count; None where the value holds nothing of the input."""
    starts: np.ndarray | None = None
    """int (words,): the token where each word begins, where it is a list of words."""

    @property
    def nbytes(self) -> int:
        return KEY_BYTES + (0 if self.tokens is None else self.tokens.nbytes)


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Bytes from the beginning of the file."""

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(DTYPES[self.dtype]).itemsize


class _Index(NamedTuple):
    """Which values a shard has: their keys, S16 (values,), and lengths and words, int32 (values,)."""

    keys: np.ndarray
    lengths: np.ndarray
    words: np.ndarray


class Shard:
    """A shard that is whole: where its arrays are. It is small where it is pickled for another process."""

    def __init__(self, fs: Any, path: str, size: int) -> None:
        """Reads its header. Raises NotWhole."""
        self.fs, self.path, self.size = fs, path, size
        self._tensors = _read_header(fs, path, size)
        if not {"keys", "lengths", "words", "tokens", "starts"} <= self._tensors.keys():
            raise NotWhole("not a shard of a cache")

    def index(self) -> _Index:
        """Reads which values it has."""
        keys = np.ascontiguousarray(self._read("keys")).view(f"S{KEY_BYTES}").reshape(-1)
        return _Index(keys, self._read("lengths"), self._read("words"))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("tokens", "starts")}

    @property
    def form(self) -> tuple[int, str] | None:
        """Width and dtype of its tokens; None where it has none."""
        tokens = self._tensors["tokens"]
        return (tokens.shape[1], tokens.dtype) if tokens.shape[0] else None

    def _read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        content = self.fs.cat_file(self.path, tensor.start, tensor.start + tensor.nbytes)
        return np.frombuffer(content, DTYPES[tensor.dtype]).reshape(tensor.shape)

    def fetch(self) -> None:
        """Make sure that there is a copy on this machine."""
        _ = self._local

    @cached_property
    def tokens(self) -> np.ndarray:
        """Memory-mapped: (all tokens, width)."""
        return self._mapped("tokens")

    @cached_property
    def starts(self) -> np.ndarray:
        """Memory-mapped: int32 (all words,)."""
        return self._mapped("starts")

    def _mapped(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        if not tensor.nbytes:  # nothing cannot be mapped
            return np.empty(tensor.shape, DTYPES[tensor.dtype])
        return np.asarray(np.memmap(self._local, DTYPES[tensor.dtype], "r", tensor.start, tensor.shape))

    @cached_property
    def _local(self) -> str:
        protocols = self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,)
        return self.path if "file" in protocols else str(_fetched(self.fs, self.path, self.size))


def _read_header(fs: Any, path: str, size: int) -> dict[str, _Tensor]:
    """Where each tensor of a safetensors file is. Raises NotWhole where the file is not as long as it says."""
    head = fs.cat_file(path, 0, min(size, _HEADER_GUESS))
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8 or not 0 < length <= min(size - 8, _LONGEST_HEADER):
        raise NotWhole("cut off within its header")
    if 8 + length > len(head):
        head = fs.cat_file(path, 0, 8 + length)
    try:
        content = json.loads(head[8 : 8 + length])
        described = {name: about for name, about in content.items() if name != "__metadata__"}
        found = {
            name: _Tensor(about["dtype"], tuple(about["shape"]), 8 + length + about["data_offsets"][0])
            for name, about in described.items()
        }
        end = max(8 + length + about["data_offsets"][1] for about in described.values())
        consistent = all(tensor.start + tensor.nbytes <= end for tensor in found.values())
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise NotWhole(f"its header cannot be read: {type(error).__name__}: {error}") from None
    if end != size or not consistent:
        raise NotWhole(f"{size} bytes, and its header says {end}")
    return found


def _fetched(fs: Any, path: str, size: int) -> Path:
    """A copy of a remote shard, shared by the processes of this machine; it may be deleted between runs."""
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
class Places:
    """Where each of some values is: arrays of one entry per value."""

    shards: list[Shard]
    """Those that hold any of the values."""
    shard: np.ndarray
    """int32: number of the shard; -1 where no shard has the value."""
    first: np.ndarray
    """int64: its first token in the shard."""
    length: np.ndarray
    """int32: its tokens; ABSENT where it holds nothing of the input."""
    first_word: np.ndarray
    words: np.ndarray
    """int32: its words, or NO_WORDS."""

    @property
    def known(self) -> np.ndarray:
        """bool: which values some shard has."""
        return self.shard >= 0

    @property
    def form(self) -> tuple[int, str] | None:
        """Width and dtype of all tokens; None where no value has any."""
        return next((shard.form for shard in self.shards if shard.form), None)

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens of the known values."""
        width, dtype = self.form or (0, "F32")
        return int(self.length.clip(min=0).sum()) * width * np.dtype(DTYPES[dtype]).itemsize


class ShardFolder:
    """The folder of one encoder on one kind of input."""

    def __init__(self, url: str, writer: str | None = None) -> None:
        self.url = url
        self._fs, self._path = filesystem(url)
        self._writer = writer or secrets.token_hex(6)
        self._written = 0

    def describe(self, about: dict[str, Any]) -> None:
        """Write down what makes the folder's content, for people."""
        if not self._fs.exists(f"{self._path}/{_ABOUT}"):
            self._put(_ABOUT, json.dumps(about, indent=1, sort_keys=True).encode())

    def write(self, made: Sequence[Made], width: int) -> None:
        """Add a shard. Raises ResourceError or NotReachable where the folder cannot be written."""
        from safetensors.torch import save

        tokens = [one.tokens for one in made if one.tokens is not None]
        starts = [np.asarray(one.starts, np.int32) for one in made if one.starts is not None]
        content = {
            "keys": torch.frombuffer(
                bytearray(b"".join(one.key.ljust(KEY_BYTES, b"\0") for one in made)), dtype=torch.uint8
            ).reshape(-1, KEY_BYTES),
            "lengths": torch.tensor(
                [ABSENT if one.tokens is None else len(one.tokens) for one in made], dtype=torch.int32
            ),
            "words": torch.tensor(
                [NO_WORDS if one.starts is None else len(one.starts) for one in made], dtype=torch.int32
            ),
            "tokens": torch.cat(tokens).contiguous() if tokens else torch.empty(0, width),
            "starts": torch.from_numpy(np.concatenate(starts) if starts else np.empty(0, np.int32)),
        }
        self._put(f"{self._writer}-{self._written:06d}{_ENDING}", save(content))
        self._written += 1

    def find(self, keys: np.ndarray, problems: list[str] | None = None) -> Places:
        """Where the values of `keys` (sorted, distinct, S16) are. What is wrong with shards is added to `problems`."""
        count = len(keys)
        places = Places(
            [],
            np.full(count, -1, np.int32),
            np.zeros(count, np.int64),
            np.zeros(count, np.int32),
            np.zeros(count, np.int64),
            np.full(count, NO_WORDS, np.int32),
        )
        for shard, index in self._shards([] if problems is None else problems):
            _locate(shard, index, keys, places)
        forms = {shard.form for shard in places.shards if shard.form}
        if len(forms) > 1:
            raise DataError(
                f"data.cache: {self.url}: its shards differ in form: {sorted(forms)}; delete the folder"
            )
        return places

    def _shards(self, problems: list[str]) -> Iterator[tuple[Shard, _Index]]:
        """The whole shards, in the order of their names."""

        def opened(entry: tuple[str, int]) -> tuple[Shard, _Index] | None:
            path, size = entry
            try:
                shard = Shard(self._fs, path, size)
                return shard, shard.index()
            except NotWhole as error:
                problems.append(
                    f"{self._fs.unstrip_protocol(path)}: {error}; it is ignored and its values are made anew; delete it"
                )
            except FileNotFoundError:
                pass  # deleted since it was listed
            return None

        entries = self._listed()
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(entries), 4 * _READERS):  # `map` would read all of them ahead
                for found in pool.map(opened, entries[start : start + 4 * _READERS]):
                    if found is not None:
                        yield found

    def _listed(self) -> list[tuple[str, int]]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(self._path, maxdepth=1, detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            raise DataError(
                f"data.cache: {self.url}: cannot be read: {type(error).__name__}: {error}"
            ) from None
        return sorted((path, int(about["size"])) for path, about in found.items() if path.endswith(_ENDING))

    def _put(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all."""
        path = f"{self._path}/{name}"
        partial = f"{path}.{secrets.token_hex(4)}.partial"
        try:
            self._fs.makedirs(self._path, exist_ok=True)
            self._fs.pipe_file(partial, content)
            self._fs.mv(partial, path)
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            raise self._not_writable(error) from None

    def _not_writable(self, error: Exception) -> RayfuseError:
        kind = NotReachable if "://" in self.url else ResourceError
        return kind(
            f"data.cache: {self.url}: cannot be written: {type(error).__name__}: {error}; "
            "name another folder, or write `cache: off`"
        )


def _locate(shard: Shard, index: _Index, keys: np.ndarray, places: Places) -> None:
    """Note where the shard has values that no shard before it had."""
    if not len(keys) or not len(index.keys):
        return
    at = np.searchsorted(keys, index.keys).clip(max=len(keys) - 1)
    own = np.flatnonzero((keys[at] == index.keys) & (places.shard[at] < 0))
    if not len(own):
        return
    at = at[own]
    number = len(places.shards)
    places.shards.append(shard)
    lengths, words = index.lengths.clip(min=0).astype(np.int64), index.words.clip(min=0).astype(np.int64)
    places.shard[at] = number
    places.first[at] = (np.cumsum(lengths) - lengths)[own]
    places.length[at] = index.lengths[own]
    places.first_word[at] = (np.cumsum(words) - words)[own]
    places.words[at] = index.words[own]
