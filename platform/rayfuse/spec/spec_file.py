"""Reading of spec files: a regular file or a URL, of at most MAX_BYTES."""

import os
import stat
from typing import Any, Final

from rayfuse.errors import SpecError
from rayfuse.formatting import printable, truncate_middle

MAX_BYTES: Final = 1_000_000
"""Largest size of a spec file."""

HTTP_TIMEOUT_SECONDS: Final = 30
"""Longest time for a request of a spec from a web server."""

MAX_ERROR_LENGTH: Final = 300
"""Largest number of characters of an error about the file, not its values."""

_MAX_PLACE_LENGTH = 120


class _NotAFileError(Exception):
    """Something else than a file, such as a folder or a pipe; the message names it."""


def read_spec_file(source: str) -> str:
    """Return the text of the spec file at a path or an fsspec URL.

    Raises SpecError in one line unless it is a regular file of UTF-8 text of at most MAX_BYTES; a pipe or device is
    not waited for.
    """
    where = place(source)
    try:
        content = _download(source) if "://" in source else _read_local(source)
        if len(content) > MAX_BYTES:
            raise SpecError(
                f"{where}: larger than {MAX_BYTES // 1_000_000} MB, and a spec is a small YAML file; pass the spec"
            )
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise SpecError(f"{where}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{where}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except _NotAFileError as error:
        raise SpecError(f"{where}: {error}, not the YAML file of a spec; pass a file or a URL") from None
    except OSError as error:
        reason = printable(error.strerror or str(error), 120)
        raise SpecError(f"{where}: cannot be read: {reason}; check the path or URL") from None


def place(source: str) -> str:
    """Return the path or URL of a spec file for a message: printable, and shortened where it is long."""
    return truncate_middle(printable(source), _MAX_PLACE_LENGTH)


def _read_local(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a null byte
        raise OSError(str(error)) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise _NotAFileError("a folder" if stat.S_ISDIR(mode) else "a pipe or device")
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            return _read_at_most(file)
    finally:
        os.close(descriptor)


def _read_at_most(file: Any) -> bytes:
    """Return the content of a file, or its first MAX_BYTES + 1 bytes."""
    content = b""
    while len(content) <= MAX_BYTES and (piece := file.read(MAX_BYTES + 1 - len(content))):
        content += piece
    return content


def _http_options(url: str) -> dict[str, Any]:
    """Return options with which a web server that sends nothing, or without end, is not waited for."""
    if not url.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    return {"client_kwargs": {"timeout": ClientTimeout(total=HTTP_TIMEOUT_SECONDS)}}


def _download(url: str) -> bytes:
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(url, **_http_options(url))
        found = files.info(path)
        if found["type"] != "file":
            raise _NotAFileError("a folder" if found["type"] == "directory" else "a pipe or device")
        with files.open(path, "rb") as file:
            return _read_at_most(file)
    except (FileNotFoundError, _NotAFileError):
        raise
    except Exception as error:  # each store has its own errors
        raise OSError(f"{type(error).__name__}: {error}".rstrip(": ")) from error
