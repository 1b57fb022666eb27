"""Files at any fsspec URL."""

import gzip
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

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


@contextmanager
def opened(url: str) -> Iterator[BinaryIO]:
    """A data file to be read from its beginning, unpacked where its name ends in `.gz`.

    One in a store is copied to the local disk first, in one request, so that memory does not depend on its size.
    Raises as `unreadable` says, for what is wrong while it is read too.
    """
    with ExitStack() as stack:
        file: Any = stack.enter_context(_local(url))
        if name_of(url).endswith(".gz"):
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        try:
            yield file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{url}: not a whole gzip file: {error}; pack or upload it again") from None


@contextmanager
def _local(url: str) -> Iterator[BinaryIO]:
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
            raise unreadable(url, error) from None
        yield file


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
