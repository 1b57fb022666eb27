"""Shards: what is written is found again, by anyone, and what is broken is named and ignored."""

import pickle
import threading
from hashlib import blake2b
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from rayfuse.data.encoded import MASK, TOKENS, WORD_STARTS, EncodedValues
from rayfuse.data.shards import ABSENT, Made, ShardFolder
from rayfuse.errors import DataError, ResourceError

WIDTH = 3


def key(number: int) -> bytes:
    return blake2b(str(number).encode(), digest_size=16).digest()


def made(number: int, dtype: torch.dtype = torch.float32) -> Made:
    """Value `number`: as many tokens as it says modulo 3, each filled with the number; 7 holds nothing."""
    if number == 7:
        return Made(key(number), None)
    starts = np.array([0, -1]) if number % 2 else None
    return Made(key(number), torch.full((number % 3, WIDTH), float(number), dtype=dtype), starts)


def sorted_keys(numbers: range) -> tuple[np.ndarray, dict[int, int]]:
    """The keys of values, and where among them each value's is."""
    order = sorted(numbers, key=key)
    return np.array([key(number) for number in order], "S16"), {n: place for place, n in enumerate(order)}


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return str(tmp_path / "cache") if request.param == "file" else f"memory://{tmp_path.name}/cache"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_come_back_as_they_were(url: str, dtype: torch.dtype) -> None:
    writer = ShardFolder(url)
    writer.write([made(n, dtype) for n in range(5)], WIDTH)
    writer.write([made(n, dtype) for n in range(5, 12)], WIDTH)
    keys, place = sorted_keys(range(13))
    places = ShardFolder(url).find(keys)
    assert places.known.sum() == 12
    assert not places.known[place[12]]
    assert places.length[place[7]] == ABSENT
    values = EncodedValues(places)
    wanted = [5, 0, 8, 2]
    found = values.gather(np.array([place[n] for n in wanted] + [-1]))
    assert found[TOKENS].dtype == dtype
    assert found[MASK].tolist() == [[True, True], [False, False], [True, True], [True, True], [False, False]]
    assert found[TOKENS][:, :, 0].tolist() == [[5, 5], [0, 0], [8, 8], [2, 2], [0, 0]]
    assert found[WORD_STARTS].tolist() == [[0, -1]] + [[-1, -1]] * 4
    single = values.gather(np.array([place[4], place[10]]))
    assert single[TOKENS].tolist() == [[[4.0] * WIDTH], [[10.0] * WIDTH]]
    assert WORD_STARTS not in single
    assert values.collate([values.blank()])[MASK].tolist() == [[False]]


def test_another_process_gets_the_places_and_not_the_values(url: str) -> None:
    large = Made(key(1), torch.rand(1000, WIDTH))
    ShardFolder(url).write([large], WIDTH)
    values = EncodedValues(ShardFolder(url).find(np.array([key(1)], "S16")))
    found = values.gather(np.array([0]))[TOKENS]
    assert torch.equal(found[0], large.tokens)
    sent = pickle.dumps(values)
    assert len(sent) < 3000 < found.nbytes
    assert torch.equal(pickle.loads(sent).gather(np.array([0]))[TOKENS], found)


def test_writers_at_the_same_time_lose_nothing(url: str) -> None:
    def write(first: int) -> None:
        folder = ShardFolder(url)
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
    places = ShardFolder(url).find(keys)
    assert places.known.all()
    some = [n for n in range(1, 40, 3) if n != 7]
    found = EncodedValues(places).gather(np.array([place[n] for n in some]))
    assert found[TOKENS][:, 0, 0].tolist() == some


@pytest.mark.parametrize("harm", ["cut", "emptied", "header", "other"])
def test_a_broken_shard_is_named_and_ignored(url: str, harm: str) -> None:
    for writer, numbers in (("a", range(4)), ("b", range(4, 8))):
        ShardFolder(url, writer).write([made(n) for n in numbers], WIDTH)
    fs, path = fsspec.url_to_fs(url)
    content = fs.cat_file(f"{path}/a-000000.safetensors")
    other = b'{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    harmed = {
        "cut": content[:-1],
        "emptied": b"",
        "header": content[:8] + b"?" * 40 + content[48:],
        "other": len(other).to_bytes(8, "little") + other,
    }
    fs.pipe_file(f"{path}/a-000000.safetensors", harmed[harm])
    keys, place = sorted_keys(range(8))
    problems: list[str] = []
    places = ShardFolder(url).find(keys, problems)
    assert {n for n in range(8) if places.known[place[n]]} == {4, 5, 6, 7}
    assert len(problems) == 1
    assert "a-000000.safetensors: " in problems[0]
    assert "made anew; delete it" in problems[0]


def test_files_that_are_still_written_are_not_seen(url: str) -> None:
    folder = ShardFolder(url, "a")
    folder.describe({"what": "test"})
    fs, path = fsspec.url_to_fs(url)
    fs.pipe_file(f"{path}/b-000000.safetensors.1234.partial", b"half")
    problems: list[str] = []
    assert not folder.find(sorted_keys(range(3))[0], problems).known.any()
    assert problems == []


def test_shards_of_two_forms_are_refused(url: str) -> None:
    ShardFolder(url, "a").write([made(1)], WIDTH)
    ShardFolder(url, "b").write([made(2, torch.bfloat16)], WIDTH)
    with pytest.raises(DataError, match="differ in form: .*delete the folder"):
        ShardFolder(url).find(sorted_keys(range(3))[0])


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="data.cache: .*cannot be written.*or write `cache: off`"):
        ShardFolder(str(tmp_path / "file" / "cache")).write([made(1)], WIDTH)
