"""Reading of files at local paths and fsspec URLs."""

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from rayfuse.errors import DataError, UnavailableError
from rayfuse.spec.base import join_url

_SHEET = "#sheet="


def _open_zstd(file: BinaryIO) -> Any:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file), "zstd"))


COMPRESSIONS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstd,
}
"""Suffixes of compressed data files → how they are decompressed."""


def read_file(url: str) -> bytes:
    """Return the content of a file, read in one request if its store allows that. Raises the store's own errors."""
    if "://" not in url:  # also faster, and fsspec would read `a::b` as two stores
        return Path(url).read_bytes()
    fs, path = fsspec.url_to_fs(url)
    content: bytes = fs.cat_file(path)
    return content


@contextmanager
def open_url(url: str, copy: bool = True) -> Iterator[BinaryIO]:
    """Open a data file for reading; a file with a suffix of COMPRESSIONS is decompressed.

    A remote file is first copied to the local disk, in one request, so that memory does not depend on its size; without
    `copy`, it is read as far as needed.
    Raises DataError or UnavailableError as `to_read_error` does, also for errors while the file is read.
    """
    suffix = compression(url)
    with ExitStack() as stack:
        remote = "://" in url and not copy
        opened = (open_for_random_access if remote else _open_local)(without_sheet(url))
        file: Any = stack.enter_context(opened)
        if not suffix:
            yield file
            return
        file = stack.enter_context(COMPRESSIONS[suffix](file))
        try:
            yield file
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(
                f"{url}: incomplete or corrupt {suffix[1:]} file: {error}; compress or upload it again"
            ) from None


@contextmanager
def unpacked(url: str, content: BinaryIO) -> Iterator[BinaryIO]:
    """Yield the content of a data file for random access: a compressed one is copied to the local disk."""
    if not compression(url):
        yield content
        return
    with tempfile.TemporaryFile(prefix="rayfuse-") as copy:
        shutil.copyfileobj(content, copy)
        copy.seek(0)
        yield copy


def compression(url: str) -> str:
    """Return the suffix of a compressed data file; empty for others."""
    name = normalized_url(url)
    return next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")


def data_suffix(url: str) -> str:
    """Return the suffix that names the format of a data file, which may be compressed, as in `.csv`."""
    name = normalized_url(url).removesuffix(compression(url)).rpartition("/")[2]
    return "." + name.rsplit(".", 1)[-1]


def without_sheet(url: str) -> str:
    """Return the URL of the workbook that `URL#sheet=NAME` names a sheet of; other URLs unchanged."""
    return url.partition(_SHEET)[0]


def sheet_of(url: str) -> str | None:
    """Return the name of the sheet in `URL#sheet=NAME`."""
    return url.partition(_SHEET)[2] or None


@contextmanager
def open_for_random_access(url: str) -> Iterator[BinaryIO]:
    """Open a file of which only parts are read; a remote file is not copied. Raises as `to_read_error` does."""
    fs, path = filesystem(url)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(fs.open(path, "rb"))
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            raise to_read_error(url, error) from None
        try:
            yield file
        except FileNotFoundError as error:
            raise to_read_error(url, error) from None


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
    """Return the URL in lower case without an HTTP query and the name of a sheet, to match its suffix."""
    url = without_sheet(url)
    return (url.partition("?")[0] if url.startswith(("http://", "https://")) else url).lower()


def resolve_relative(folder: str, path: str) -> str:
    """Resolve the path of a row: URLs and absolute paths are unchanged, others are relative to the rows' folder."""
    if "://" in path or path.startswith("/"):
        return path
    return join_url(folder, path) if ":/" in folder else f"{folder}/{path}"
