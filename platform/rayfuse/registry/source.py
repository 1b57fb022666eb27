"""Which code and which person made a run: tags that MLflow shows beside it."""

import getpass
import subprocess
from pathlib import Path

from rayfuse import __version__

_GIT_SECONDS = 5


def source_tags(kind: str, spec_file: str | None) -> dict[str, str]:
    """Tags for a run of `kind`, from the git repository of its spec file (or of the working folder), if any."""
    tags = {
        "rayfuse.version": __version__,
        "rayfuse.kind": kind,
        "mlflow.user": user(),
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


def user() -> str:
    """The name of whoever runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "unknown"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers; None without git, or outside a repository."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
