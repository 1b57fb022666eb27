"""Splits by the names of files and folders, such as `train.csv` and `test.csv`."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayfuse.data.files import data_suffix, filesystem, to_read_error, without_sheet
from rayfuse.data.formats.sql import is_database
from rayfuse.data.readers import READERS
from rayfuse.errors import RayfuseError, SpecError
from rayfuse.formatting import truncate
from rayfuse.spec.base import join_url
from rayfuse.spec.rows import Urls, is_table

SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""Splits → names of files and folders that hold them."""
_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_DATASET_SPLITS = "dataset_dict.json"


@dataclass(frozen=True)
class DataSplits:
    """Rows of each split: URLs, or tables in memory."""

    train: Any
    """Rows to train on."""
    validation: Any = None
    """Rows of validation; None if they are held out from the others."""
    test: Any = None
    """Rows of the test; None if they are held out from the others."""
    notes: list[str] = field(default_factory=list)
    """Files that were left out, and why."""


def find_splits(data: Any) -> DataSplits:
    """Return the splits of a file, a folder, a list of files, a table, or a mapping of splits to tables.

    Raises SpecError for other values, DataError or UnavailableError for folders that cannot be listed.
    """
    if isinstance(data, Mapping):
        return _from_mapping(data)
    if not isinstance(data, (str, list, tuple)) or is_table(data):
        if not is_table(data):
            raise SpecError(
                f"data: expected the path or URL of rows, or a table, not {type(data).__name__}; pass a DataFrame or a list of dicts"
            )
        return DataSplits(data)
    if not isinstance(data, str):
        return DataSplits(tuple(data))
    if is_database(data) or any(sign in data for sign in "*?["):
        return DataSplits(data)
    fs, path = filesystem(without_sheet(data))
    try:
        return _from_folder(fs, path, data) if fs.isdir(path) else _from_siblings(fs, path, data)
    except RayfuseError:
        raise
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise to_read_error(data, error) from None


def _from_mapping(splits: Mapping[str, Any]) -> DataSplits:
    found = {_SPLIT_OF[name]: table for name, table in splits.items() if name in _SPLIT_OF}
    if "train" not in found:
        raise SpecError(
            f"data: no split `train` among {truncate(', '.join(map(str, splits)))}; pass one table, or "
            "{'train': TABLE, 'test': TABLE}"
        )
    return DataSplits(**found)


def _from_folder(fs: Any, path: str, url: str) -> DataSplits:
    """Return the splits of a folder: folders or files with their names, else all of its files."""
    names = sorted(str(item["name"]).rstrip("/").rpartition("/")[2] for item in fs.ls(path, detail=True))
    folder = url.rstrip("/")
    if _DATASET_SPLITS in names:
        splits = json.loads(fs.cat_file(f"{path.rstrip('/')}/{_DATASET_SPLITS}"))["splits"]
        return _from_names({name: [name] for name in splits}, folder)
    folders = {name: [name] for name in names if name in _SPLIT_OF and fs.isdir(f"{path.rstrip('/')}/{name}")}
    if "train" in map(_SPLIT_OF.get, folders):
        return _from_names(folders, folder)
    files = [name for name in names if data_suffix(name) in READERS and not name.startswith(".")]
    found = _group_files(files)
    if "train" in map(_SPLIT_OF.get, found):
        others = sorted(set(files) - {name for group in found.values() for name in group})
        return _from_names(found, folder, others)
    if "data" in names and not files and fs.isdir(f"{path.rstrip('/')}/data"):  # as on the Hugging Face hub
        return _from_folder(fs, f"{path.rstrip('/')}/data", f"{folder}/data")
    return DataSplits(url)


def _group_files(files: Sequence[str]) -> dict[str, list[str]]:
    """Return files by the name of their split: whole names first, then shards, then names that contain one."""
    stems = {name: name.split(".", 1)[0] for name in files}
    whole = {
        stem: [name for name in files if stems[name] == stem] for stem in stems.values() if stem in _SPLIT_OF
    }
    if "train" in map(_SPLIT_OF.get, whole):
        return whole
    for split_of in (_shard_split, _word_split):
        found: dict[str, list[str]] = {}
        for name, stem in stems.items():
            if split := split_of(stem):
                found.setdefault(split, []).append(name)
        if "train" in map(_SPLIT_OF.get, found) and (split_of is _shard_split or len(found["train"]) == 1):
            return found
    return {}


def _shard_split(stem: str) -> str | None:
    """Return the split of a shard such as `train-00000-of-00002`."""
    match = re.fullmatch(r"([a-z]+)-\d+(-of-\d+)?", stem)
    return match[1] if match and match[1] in _SPLIT_OF else None


def _word_split(stem: str) -> str | None:
    """Return the split of a name such as `reviews_train` or `reviewsTest`, in its first spelling."""
    words = [_SPLIT_OF[word.lower()] for word in _WORD.findall(stem) if word.lower() in _SPLIT_OF]
    return words[0] if len(words) == 1 else None


def _from_names(names: Mapping[str, Sequence[str]], folder: str, others: Sequence[str] = ()) -> DataSplits:
    urls: dict[str, Any] = {}
    for name, files in names.items():
        paths = tuple(_join(folder, file) for file in files)
        urls.setdefault(_SPLIT_OF.get(name, name), paths[0] if len(paths) == 1 else paths)
    notes = [f"left out, as they name no split: {truncate(', '.join(others))}"] if others else []
    known = {split: url for split, url in urls.items() if split in SPLIT_NAMES}
    if "train" not in known:
        raise SpecError(
            f"{folder}: no split `train` among {', '.join(names)}; write the folder of one of them"
        )
    return DataSplits(**known, notes=notes)


def _from_siblings(fs: Any, path: str, url: str) -> DataSplits:
    """Return a file of training rows with the files of other splits in its folder, whose names differ in one word."""
    folder, _, name = path.rpartition("/")
    place = _train_word(name.split(".", 1)[0])
    if place is None or not fs.exists(path):
        return DataSplits(url)
    start, end = place
    base = url[: len(url) - len(name)] if url.endswith(name) else None
    if base is None:  # a sheet, or a query
        return DataSplits(url)
    found: dict[str, str] = {}
    for split in ("validation", "test"):
        for word in _spellings(SPLIT_NAMES[split], name[start:end]):
            sibling = name[:start] + word + name[end:]
            if fs.isfile(f"{folder}/{sibling}" if folder else sibling):
                found.setdefault(split, base + sibling)
    return DataSplits(url, found.get("validation"), found.get("test"))


def _train_word(stem: str) -> tuple[int, int] | None:
    places = [match.span() for match in _WORD.finditer(stem) if _SPLIT_OF.get(match[0].lower()) == "train"]
    return places[0] if len(places) == 1 else None


def _spellings(words: Sequence[str], like: str) -> Iterator[str]:
    """Yield words in the case of another: Test for Train, TEST for TRAIN."""
    for word in words:
        yield word.upper() if like.isupper() else word.capitalize() if like[0].isupper() else word


def _join(folder: str, name: str) -> str:
    return join_url(folder, name) if "://" in folder else f"{folder}/{name}"


def urls_of(rows: Any) -> Urls | None:
    """Return the URLs of a split; None for a table in memory."""
    return rows if isinstance(rows, (str, tuple)) else None
