"""A local S3 server, and a proxy to it that can be disconnected."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rayfuse.cluster.local import free_ports


class S3:
    """A server with an empty bucket called `bucket`."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a client."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def filesystem(self) -> Any:
        import s3fs

        return s3fs.S3FileSystem(key="test", secret="test", endpoint_url=self.url, skip_instance_cache=True)


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """Start the server with its log in FOLDER."""
    import httpx

    [port] = free_ports(1)
    s3 = S3(f"http://127.0.0.1:{port}")
    server = Path(sys.executable).with_name("moto_server")
    with open(folder / "s3.log", "wb") as log:
        process = subprocess.Popen([server, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    try:
        for _ in range(300):
            try:
                httpx.get(s3.url, trust_env=False)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        s3.filesystem().mkdir("bucket")
        yield s3
    finally:
        process.kill()
        process.wait(10)


class Cuttable(S3):
    """Proxy of a server on another port, which can reject connections for a while."""

    def __init__(self, behind: S3) -> None:
        self.behind = behind
        self.num_rejected = 0
        self._until = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        super().__init__(f"http://127.0.0.1:{self._listener.getsockname()[1]}")
        threading.Thread(target=self._accept, daemon=True).start()

    def fail_for(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        address = self.behind.url.rpartition("/")[2].split(":")
        with client, socket.create_connection((address[0], int(address[1]))) as server:
            back = threading.Thread(target=self._pass_on, args=(server, client), daemon=True)
            back.start()
            self._pass_on(client, server)
            back.join()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        """Forward bytes until one side closes, or the proxy is disconnected."""
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if time.monotonic() < self._until:
                    self.num_rejected += 1
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
