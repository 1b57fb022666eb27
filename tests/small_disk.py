"""A disk of a few megabytes, mounted where only the processes that are started through it see it."""

import contextlib
import os
import subprocess
import time
from pathlib import Path


class SmallDisk:
    """A file system in memory of `megabytes` at `path`, in its own mount namespace (Linux)."""

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path = path
        path.mkdir()
        script = f"mount -t tmpfs -o size={megabytes}m tmpfs '{path}' && echo mounted && exec sleep 100000"
        self._holder = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "mounted\n", "unprivileged mounts are needed for this test"

    @property
    def prefix(self) -> list[str]:
        """Prefix of a command that uses the disk."""
        return [
            "nsenter", "--target", str(self._holder.pid), "--user", "--mount", "--preserve-credentials",
            f"--wdns={os.getcwd()}", "--",
        ]  # fmt: skip

    @property
    def seen_from_here(self) -> Path:
        return Path(f"/proc/{self._holder.pid}/root{self.path}")

    def fill(self) -> None:
        """Fill the disk completely, including space that is freed within a moment."""
        for _ in range(20):
            with contextlib.suppress(OSError), (self.seen_from_here / "ballast").open("ab") as file:
                while True:
                    file.write(bytes(1 << 12))
                    file.flush()
            time.sleep(0.1)

    def hide(self) -> None:
        """Cover the disk with an empty one, as where it is unmounted; open files stay open."""
        self._run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(self.path))

    def show(self) -> None:
        """Undo `hide`; what was written meanwhile is lost."""
        self._run("umount", "-l", str(self.path))

    def _run(self, *command: str) -> None:
        subprocess.run([*self.prefix, *command], check=True, capture_output=True)

    def make_room(self) -> None:
        (self.seen_from_here / "ballast").unlink()

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait(10)
