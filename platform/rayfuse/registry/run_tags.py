"""Tags of an MLflow run: version, user, spec file and git commit."""

import getpass
import subprocess
from pathlib import Path

from rayfuse import __version__

DESCRIPTION_TAG = "mlflow.note.content"
"""Tag with the description of a run, which MLflow shows as Markdown."""

_GIT_SECONDS = 5


def source_tags(kind: str, spec_file: str | None) -> dict[str, str]:
    """Return the tags of a run of this spec kind, with the git commit of its spec file or the working folder, if any."""
    tags = {
        "rayfuse.version": __version__,
        "rayfuse.kind": kind,
        "mlflow.user": current_user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": spec_file or "rayfuse",
    }
    folder = Path(spec_file).parent if spec_file and "://" not in spec_file else Path()
    commit = _git(folder, "rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        tags["mlflow.source.git.branch"] = _git(folder, "rev-parse", "--abbrev-ref", "HEAD") or ""
        tags["rayfuse.git.dirty"] = str(bool(_git(folder, "status", "--porcelain"))).lower()
    return tags


def current_user() -> str:
    """Return the name of the user of this process; `unknown` in a container without one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of a git command; None without git, or outside a repository."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
