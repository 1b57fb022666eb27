"""Encoding store: written values are found by every process, and corrupt shards are ignored with a warning."""

import pickle
import threading
from hashlib import blake2b
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from rayfuse.data.cached_features import TOKENS, TOKENS_MASK, WORD_STARTS, CachedFeaturesModality
from rayfuse.data.encoding_store import ABSENT, Encoding, EncodingStore
from rayfuse.errors import DataError, ResourceError

WIDTH = 3


def key(number: int) -> bytes:
    return blake2b(str(number).encode(), digest_size=16).digest()


def made(number: int, dtype: torch.dtype = torch.float32) -> Encoding:
    """Return value `number`: `number % 3` tokens filled with the number; 7 has no content for the input."""
    if number == 7:
        return Encoding(key(number), None)
    starts = np.array([0, -1]) if number % 2 else None
    return Encoding(key(number), torch.full((number % 3, WIDTH), float(number), dtype=dtype), starts)


def sorted_keys(numbers: range) -> tuple[np.ndarray, dict[int, int]]:
    """Return the sorted keys of values, and the place of each value's key."""
    order = sorted(numbers, key=key)
    return np.array([key(number) for number in order], "S16"), {n: place for place, n in enumerate(order)}


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return str(tmp_path / "cache") if request.param == "file" else f"memory://{tmp_path.name}/cache"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_round_trip(url: str, dtype: torch.dtype) -> None:
    writer = EncodingStore(url)
    writer.write([made(n, dtype) for n in range(5)], WIDTH)
    writer.write([made(n, dtype) for n in range(5, 12)], WIDTH)
    keys, place = sorted_keys(range(13))
    places = EncodingStore(url).lookup(keys)
    assert places.is_cached.sum() == 12
    assert not places.is_cached[place[12]]
    assert places.token_counts[place[7]] == ABSENT
    values = CachedFeaturesModality(places)
    wanted = [5, 0, 8, 2]
    found = values.gather(np.array([place[n] for n in wanted] + [-1]))
    assert found[TOKENS].dtype == dtype
    assert found[TOKENS_MASK].tolist() == [
        [True, True],
        [False, False],
        [True, True],
        [True, True],
        [False, False],
    ]
    assert found[TOKENS][:, :, 0].tolist() == [[5, 5], [0, 0], [8, 8], [2, 2], [0, 0]]
    assert found[WORD_STARTS].tolist() == [[0, -1]] + [[-1, -1]] * 4
    single = values.gather(np.array([place[4], place[10]]))
    assert single[TOKENS].tolist() == [[[4.0] * WIDTH], [[10.0] * WIDTH]]
    assert WORD_STARTS not in single
    assert values.collate([values.dummy_features()])[TOKENS_MASK].tolist() == [[False]]


def test_pickled_values_are_small(url: str) -> None:
    large = Encoding(key(1), torch.rand(1000, WIDTH))
    EncodingStore(url).write([large], WIDTH)
    values = CachedFeaturesModality(EncodingStore(url).lookup(np.array([key(1)], "S16")))
    found = values.gather(np.array([0]))[TOKENS]
    assert torch.equal(found[0], large.tokens)
    sent = pickle.dumps(values)
    assert len(sent) < 3000 < found.nbytes
    assert torch.equal(pickle.loads(sent).gather(np.array([0]))[TOKENS], found)


def test_concurrent_writers(url: str) -> None:
    def write(first: int) -> None:
        folder = EncodingStore(url)
        for start in range(first, first + 20, 5):
            folder.write([made(n) for n in range(start, start + 5)], WIDTH)

    threads = [
        threading.Thread(target=write, args=(first,)) for first in (0, 10, 20, 0)
    ]  # some write the same
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys, place = sorted_keys(range(40))
    places = EncodingStore(url).lookup(keys)
    assert places.is_cached.all()
    some = [n for n in range(1, 40, 3) if n != 7]
    found = CachedFeaturesModality(places).gather(np.array([place[n] for n in some]))
    assert found[TOKENS][:, 0, 0].tolist() == some


@pytest.mark.parametrize("harm", ["cut", "emptied", "header", "other"])
def test_a_corrupt_shard_is_ignored_with_a_warning(url: str, harm: str) -> None:
    fs, path = fsspec.url_to_fs(url)
    EncodingStore(url).write([made(n) for n in range(4)], WIDTH)
    [shard] = fs.glob(f"{path}/*.safetensors")
    EncodingStore(url).write([made(n) for n in range(4, 8)], WIDTH)
    content = fs.cat_file(shard)
    other = b'{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    harmed = {
        "cut": content[:-1],
        "emptied": b"",
        "header": content[:8] + b"?" * 40 + content[48:],
        "other": len(other).to_bytes(8, "little") + other,
    }
    fs.pipe_file(shard, harmed[harm])
    keys, place = sorted_keys(range(8))
    problems: list[str] = []
    places = EncodingStore(url).lookup(keys, problems)
    assert {n for n in range(8) if places.is_cached[place[n]]} == {4, 5, 6, 7}
    assert len(problems) == 1
    assert f"{shard}: " in problems[0]
    assert "encoded again; delete it" in problems[0]


def test_partial_files_are_ignored(url: str) -> None:
    folder = EncodingStore(url)
    folder.write_metadata({"what": "test"})
    fs, path = fsspec.url_to_fs(url)
    fs.pipe_file(f"{path}/b-000000.safetensors.1234.partial", b"half")
    problems: list[str] = []
    assert not folder.lookup(sorted_keys(range(3))[0], problems).is_cached.any()
    assert problems == []


def test_shards_of_different_dtypes_are_rejected(url: str) -> None:
    EncodingStore(url).write([made(1)], WIDTH)
    EncodingStore(url).write([made(2, torch.bfloat16)], WIDTH)
    with pytest.raises(DataError, match="differ in hidden size or dtype: .*delete the folder"):
        EncodingStore(url).lookup(sorted_keys(range(3))[0])


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ResourceError, match="data.feature_cache: .*cannot be written.*or write `feature_cache: off`"
    ):
        EncodingStore(str(tmp_path / "file" / "cache")).write([made(1)], WIDTH)
