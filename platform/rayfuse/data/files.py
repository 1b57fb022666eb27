"""Reading of files at local paths and fsspec URLs."""

import gzip
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from rayfuse.errors import DataError, UnavailableError
from rayfuse.spec.base import join_url


def read_file(url: str) -> bytes:
    """Return the content of a file, read in one request if its store allows that. Raises the store's own errors."""
    if "://" not in url:  # also faster, and fsspec would read `a::b` as two stores
        return Path(url).read_bytes()
    fs, path = fsspec.url_to_fs(url)
    content: bytes = fs.cat_file(path)
    return content


@contextmanager
def open_url(url: str) -> Iterator[BinaryIO]:
    """Open a data file for reading; a file with the suffix `.gz` is decompressed.

    A remote file is first copied to the local disk, in one request, so that memory does not depend on its size.
    Raises DataError or UnavailableError as `to_read_error` does, also for errors while the file is read.
    """
    with ExitStack() as stack:
        file: Any = stack.enter_context(_open_local(url))
        if normalized_url(url).endswith(".gz"):
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        try:
            yield file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(
                f"{url}: incomplete or corrupt gzip file: {error}; compress or upload it again"
            ) from None


@contextmanager
def _open_local(url: str) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        try:
            if "://" in url:
                fs, path = fsspec.url_to_fs(url)
                file: Any = stack.enter_context(tempfile.NamedTemporaryFile(prefix="rayfuse-"))
                fs.get_file(path, file.name)
                file = stack.enter_context(Path(file.name).open("rb"))  # it may have been replaced
            else:
                file = stack.enter_context(Path(url).open("rb"))
        except Exception as error:  # noqa: BLE001 - each store has its own errors; all mean "not read"
            raise to_read_error(url, error) from None
        yield file


def to_read_error(url: str, error: Exception) -> DataError | UnavailableError:
    """Convert a store's error: to UnavailableError if a retry or other permissions may help, else to DataError."""
    if isinstance(error, (DataError, UnavailableError)):
        return error
    if isinstance(error, FileNotFoundError):
        return DataError(f"{url}: no such file or folder")
    if isinstance(error, PermissionError):
        return UnavailableError(f"{url}: permission denied: {error}")
    kind = UnavailableError if "://" in url and not isinstance(error, ValueError) else DataError
    return kind(f"{url}: cannot be read: {type(error).__name__}: {error}")


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL and the path in it. Raises DataError for an unsupported protocol."""
    try:
        fs, path = fsspec.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise DataError(f"{url}: {error}") from None
    return fs, path


def normalized_url(url: str) -> str:
    """Return the URL in lower case without an HTTP query, to match its suffix."""
    return (url.partition("?")[0] if url.startswith(("http://", "https://")) else url).lower()


def resolve_relative(folder: str, path: str) -> str:
    """Resolve the path of a row: URLs and absolute paths are unchanged, others are relative to the rows' folder."""
    if "://" in path or path.startswith("/"):
        return path
    return join_url(folder, path) if ":/" in folder else f"{folder}/{path}"
