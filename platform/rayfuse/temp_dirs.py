"""The folder for the sockets and logs of a Ray that Rayfuse starts, and of the process groups of its workers."""

import os
import re
import tempfile

from rayfuse.errors import SpecError

_MAX_SOCKET_PATH_LENGTH = 107
"""Maximum bytes in the path of a Unix socket."""
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+@,=:~-]+")
_DEFAULT = "/tmp"  # noqa: S108 - for private folders


def socket_base_dir(length_below: int) -> str:
    """Return a folder below which Ray can create its sockets: RAY_TMPDIR, else TMPDIR or another temporary folder.

    Ray and PyTorch need a path of plain characters, to which up to `length_below` characters are added. A temporary folder
    of another kind is replaced by /tmp. Raises SpecError where RAY_TMPDIR is of another kind.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    if not chosen:
        base = tempfile.gettempdir()
        return _DEFAULT if _problem(base, length_below) else base
    problem = _problem(chosen, length_below)
    if problem:
        raise SpecError(
            f"RAY_TMPDIR: {chosen}: {problem}; set it to a short path such as {_DEFAULT}, or unset it"
        )
    return chosen


def _problem(folder: str, length_below: int) -> str:
    """Return why Ray cannot create its sockets below a folder; an empty text if it can."""
    limit = _MAX_SOCKET_PATH_LENGTH - length_below
    if not _PLAIN_PATH.fullmatch(folder):
        return "Ray needs a path of letters, digits and . _ - + @ , = : ~"
    if len(folder) > limit:
        return f"{len(folder)} characters are above the limit of {limit}, as paths of sockets have at most {_MAX_SOCKET_PATH_LENGTH}"
    if not os.path.isabs(folder):
        return "not an absolute path"
    return ""
