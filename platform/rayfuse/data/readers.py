"""Data files by format, at any fsspec URL: a file, a glob, a folder or a table.

Rows are streamed: memory does not depend on their number.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from rayfuse.data.files import COMPRESSIONS, data_suffix, filesystem, open_url, to_read_error, without_sheet
from rayfuse.data.formats.arrow_rows import read_arrow, read_parquet
from rayfuse.data.formats.base import CellParsers, Reader
from rayfuse.data.formats.class_folders import is_class_folder, read_class_folder
from rayfuse.data.formats.delimited import read_csv, read_tsv
from rayfuse.data.formats.excel import read_excel
from rayfuse.data.formats.hugging_face import list_dataset_files
from rayfuse.data.formats.json_rows import read_json, read_json_lines
from rayfuse.data.formats.lakehouse import is_table, read_table
from rayfuse.data.formats.sql import check_database_url, is_database, read_database
from rayfuse.data.formats.webdataset import read_webdataset
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.errors import DataError
from rayfuse.spec.rows import Urls

READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
    ".xlsx": read_excel,
    ".tar": read_webdataset,
}
"""Formats by the suffixes of their files, which may be followed by a suffix of a compression."""
_DESCRIPTION_SUFFIX = ".json"
"""Suffix of files that often describe the others of a folder, which has rows in it only if it has no others."""


def read_rows(
    file: str, cell_parsers: CellParsers | None = None, copy: bool = True
) -> Iterator[Row | InvalidRow]:
    """Yield the rows of a file in the order of its lines, and its invalid lines.

    The cells of csv are texts, except in the columns of `cell_parsers`; empty cells are null. A cell's type depends on
    the cell alone, so that it is the same in every file. `copy`: see `rayfuse.data.files.open_url`. Raises DataError if the file is empty or incomplete,
    UnavailableError if its store does not respond.
    """
    if is_database(file):
        yield from read_database(file, cell_parsers or {})
        return
    if file.endswith("/"):
        yield from read_class_folder(file, cell_parsers or {})
        return
    if is_folder(file):
        yield from read_table(file)
        return
    reader = _reader_for(file)
    with open_url(file, copy) as content:
        yield from reader(file, content, cell_parsers or {})


def is_folder(file: str) -> bool:
    """Return whether a URL from `list_data_files` is a folder: one of classes, or a table."""
    return file.endswith("/") or (data_suffix(file) not in READERS and is_table(file))


def list_data_files(urls: Urls) -> list[str]:
    """Return the files that each URL, glob or folder names, sorted; a table is one, and a folder of classes ends in `/`.

    Raises DataError for none, and for one named twice.
    """
    found = [file for url in ([urls] if isinstance(urls, str) else urls) for file in _list_files(url)]
    file, times = Counter(found).most_common(1)[0]
    if times > 1:
        raise DataError(f"{file}: named {times} times in the list of data files; remove all but one")
    return found


def _list_files(url: str) -> list[str]:
    if is_database(url):
        check_database_url(url)
        return [url]
    fs, path = filesystem(without_sheet(url))
    try:
        if data_suffix(url) in READERS and fs.isfile(path):
            return [url]
        if any(sign in path for sign in "*?["):
            found = sorted(map(str, fs.glob(path)))
            problem = "no file matches"
        elif fs.isdir(path) and is_table(url):
            return [url.rstrip("/")]
        elif fs.isdir(path):
            found = _files_in(fs, path, url)
            problem = f"the folder has no {', '.join(READERS)} file, and no folders of files by class"
            if not found and is_class_folder(fs, path, url):
                return [url.rstrip("/") + "/"]
        else:
            return [url]
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise to_read_error(url, error) from None
    if not found:
        raise DataError(f"{url}: {problem}")
    return [str(fs.unstrip_protocol(name)) if "://" in url else name for name in found]


def _files_in(fs: Any, path: str, url: str) -> list[str]:
    names = [str(name) for name in fs.ls(path, detail=False)]
    dataset = list_dataset_files(fs, path, names, url)
    if dataset is not None:
        return dataset
    found = sorted(name for name in names if data_suffix(name) in READERS and not _is_hidden(name))
    return [name for name in found if data_suffix(name) != _DESCRIPTION_SUFFIX] or found


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


def _reader_for(file: str) -> Reader:
    suffix = data_suffix(file)
    if suffix not in READERS:
        raise DataError(
            f"{file}: unsupported file type; use one of: {', '.join(READERS)}, also compressed as "
            f"{', '.join(COMPRESSIONS)}"
        )
    return READERS[suffix]
