"""The encoding of file names, text files and standard streams."""

import codecs
import io
import sys

from rayfuse.errors import SpecError


def check_encoding() -> None:
    """Raise SpecError unless this Python encodes file names and text files as UTF-8, as it does by default."""
    encoding = sys.getfilesystemencoding()
    if codecs.lookup(encoding).name != "utf-8":
        raise SpecError(
            f"Python encodes file names and text files as {encoding} here, and Rayfuse requires UTF-8; set PYTHONUTF8=1, "
            "or a UTF-8 locale such as LC_ALL=C.UTF-8"
        )


def escape_unencodable_output() -> None:
    """Let standard output and standard error escape what their encoding lacks, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
