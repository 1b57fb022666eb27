"""Rows of a folder that has a folder of files for each class.

    photos/cat/1.jpg      {"file_name": "cat/1.jpg", "image": "cat/1.jpg", "label": "cat"}
    photos/dog/2.jpg      {"file_name": "dog/2.jpg", "image": "dog/2.jpg", "text": "a terrier", "label": "dog"}
    photos/dog/2.txt

Paths are relative to the folder of the classes.
"""

import logging
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from typing import Any

from rayfuse.data.files import filesystem, read_file, resolve_relative, to_read_error
from rayfuse.data.formats.base import CellParsers, Rows
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.errors import DataError

KINDS: dict[str, tuple[str, ...]] = {
    "image": (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    "audio": (".aac", ".aif", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav"),
    "video": (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"),
    "text": (".txt",),
}  # fmt: skip
"""Columns of the rows → suffixes of the files in them."""
LABEL = "label"
"""Column with the name of the folder."""
FILE_NAME = "file_name"
"""Column with the path of a row's first file."""
_KIND_OF = {suffix: kind for kind, suffixes in KINDS.items() for suffix in suffixes}
_SPLITS = {"dev", "test", "testing", "train", "training", "val", "valid", "validation"}
_log = logging.getLogger(__name__)


def is_class_folder(fs: Any, path: str, url: str) -> bool:
    """Return whether a folder has folders with files of a known kind. Raises DataError if they are splits.

    Logs the files that are in no folder.
    """
    folders = _class_folders(fs, path)
    if not any(_kind(name) for folder in folders for name in _files(fs, folder)):
        return False
    names = {folder.rpartition("/")[2] for folder in folders}
    if names <= _SPLITS:
        raise DataError(
            f"{url}: its folders are splits, not classes; write the folder of one of them: "
            + ", ".join(f"{url.rstrip('/')}/{name}" for name in sorted(names))
        )
    stray = [name.rpartition("/")[2] for name in _visible(fs.ls(path, detail=False)) if name not in folders]
    if stray:
        _warn_of_stray(url, tuple(sorted(stray)))
    return True


def read_class_folder(url: str, cell_parsers: CellParsers) -> Rows:
    """Yield the rows of a folder, sorted by the names of its folders and files.

    Files of different kinds that differ only in their suffixes are one row. The contents of texts are read, other files
    are named. Hidden files are left out; files of an unknown kind are invalid rows.
    """
    fs, path = filesystem(url)
    root = path.rstrip("/")
    number = 0
    try:
        for folder in _class_folders(fs, root):
            for files in _group(name[len(root) + 1 :] for name in _files(fs, folder)):
                number += 1
                yield _read(url, files, number, cell_parsers)
    except OSError as error:
        raise to_read_error(url, error) from None


def _read(url: str, files: list[str], number: int, cell_parsers: CellParsers) -> Row | InvalidRow:
    label = files[0].partition("/")[0]
    values: dict[str, Any] = {FILE_NAME: files[0]}
    for name in files:
        kind = _kind(name)
        if kind is None:
            return InvalidRow(
                f"{url}{name}",
                "neither image, audio, video nor text by its suffix; rename or remove the file",
            )
        try:
            values[kind] = _read_text(url, name) if kind == "text" else name
        except UnicodeDecodeError as error:
            return InvalidRow(f"{url}{name}", f"not UTF-8 (byte {error.start}); save the file as UTF-8")
    values[LABEL] = cell_parsers[LABEL](label) if LABEL in cell_parsers else label
    return Row(values, url, number)


def _read_text(url: str, name: str) -> str:
    return read_file(resolve_relative(url.rstrip("/"), name)).decode("utf-8-sig")


def _group(names: Iterable[str]) -> Iterator[list[str]]:
    """Yield the files of each row: those of one name without the suffix, unless two of them are of one kind."""
    for _, found in groupby(sorted(names, key=lambda name: (_stem(name), name)), key=_stem):
        files = list(found)
        kinds = {_kind(name) for name in files}
        if len(kinds) == len(files) and None not in kinds:
            yield files
        else:
            yield from ([name] for name in files)


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _kind(name: str) -> str | None:
    return _KIND_OF.get("." + name.rpartition(".")[2].lower())


def _class_folders(fs: Any, path: str) -> list[str]:
    found = fs.ls(path, detail=True)
    return sorted(_visible(item["name"].rstrip("/") for item in found if item["type"] == "directory"))


def _files(fs: Any, folder: str) -> Iterator[str]:
    """Yield the files in a folder and its folders, except hidden ones."""
    parent = folder.rpartition("/")[0]
    for name in fs.find(folder):
        if not any(map(_is_hidden, str(name)[len(parent) + 1 :].split("/"))):
            yield str(name)


def _visible(names: Iterable[Any]) -> list[str]:
    return [name for name in map(str, names) if not _is_hidden(name.rstrip("/").rpartition("/")[2])]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


@lru_cache(maxsize=256)
def _warn_of_stray(url: str, names: tuple[str, ...]) -> None:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    _log.warning("%s: left out, as they are in no folder of a class: %s", url, shown)
