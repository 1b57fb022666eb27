"""Whole files at any fsspec URL."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import fsspec

from rayfuse.errors import DataError, NotReachable
from rayfuse.spec.base import join_url


def read_file(url: str) -> bytes:
    """The content of a file, in one request where its store allows that; raises the store's own errors."""
    if "://" not in url:  # also faster, and fsspec would read `a::b` as two stores
        return Path(url).read_bytes()
    fs, path = fsspec.url_to_fs(url)
    content: bytes = fs.cat_file(path)
    return content


def read_unpacked(url: str) -> bytes:
    """The content of a data file, unpacked where its name ends in `.gz`. Raises as `unreadable` says."""
    try:
        content = read_file(url)
    except Exception as error:  # noqa: BLE001 - each store has its own errors; all mean "not read"
        raise unreadable(url, error) from None
    if not name_of(url).endswith(".gz"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{url}: not a whole gzip file: {error}; pack or upload it again") from None


def unreadable(url: str, error: Exception) -> DataError | NotReachable:
    """What a store's error means: NotReachable where another try or other rights may help, else DataError."""
    if isinstance(error, (DataError, NotReachable)):
        return error
    if isinstance(error, FileNotFoundError):
        return DataError(f"{url}: no such file or folder")
    if isinstance(error, PermissionError):
        return NotReachable(f"{url}: not allowed: {error}")
    kind = NotReachable if "://" in url and not isinstance(error, ValueError) else DataError
    return kind(f"{url}: cannot be read: {type(error).__name__}: {error}")


def filesystem(url: str) -> tuple[Any, str]:
    """The store of a URL and the path in it. Raises DataError for a kind of URL that is not known here."""
    try:
        fs, path = fsspec.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise DataError(f"{url}: {error}") from None
    return fs, path


def name_of(url: str) -> str:
    """The URL without an HTTP query, in lower case: what a file's ending is looked for in."""
    return (url.partition("?")[0] if url.startswith(("http://", "https://")) else url).lower()


def beside(folder: str, path: str) -> str:
    """Where `path` of a row leads: URLs and absolute paths as they are, others counted from the rows' folder."""
    if "://" in path or path.startswith("/"):
        return path
    return join_url(folder, path) if ":/" in folder else f"{folder}/{path}"
