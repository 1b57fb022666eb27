"""The processes that decode untrusted files for a replica: a parent, which has loaded the decoders, and its forks.

    python -m rayfuse.serving.decoding_process FD

`rayfuse.serving.decoders` starts the parent with one end of a socket. A fork decodes one file after another, each
within limits of memory (RLIMIT_DATA) and CPU time (ITIMER_PROF), and ends if it exceeds them; a new one takes
milliseconds. Messages are JSON and the bytes of files and arrays: nothing is unpickled.
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from rayfuse.errors import InvalidInputError, MissingInputError
from rayfuse.modalities import Features, Modality, build_modality
from rayfuse.modalities.audio import AudioModality
from rayfuse.modalities.decode_memory import LIMIT
from rayfuse.spec.inputs import Input

START, END = b"start", b"end "
READY, GRANTED = b"ready", b"granted"

_STATM = Path("/proc/self/statm")
_MAX_KEPT_BYTES = 150_000_000
"""Memory after which a fork ends: above that of an image of 12 megapixels."""
SEPARATOR = b"\n"
"""Byte between the JSON of a message and the contents after it."""


class ForkServer:
    """The parent: forks processes on request, and returns how they ended."""

    def __init__(self, control: Connection) -> None:
        self.control = control
        options = TypeAdapter(dict[str, Input]).validate_json(control.recv_bytes())
        self.modalities = {name: build_modality(config) for name, config in options.items()}
        self._running: set[int] = set()
        self._ended: dict[int, int] = {}

    def run(self) -> None:
        """Load the decoders, and serve requests until the replica closes the socket."""
        _load_decoders(self.modalities)
        _limit_privileges()
        self.control.send_bytes(READY)
        with suppress(EOFError, ConnectionError):
            while True:
                request = self.control.recv_bytes()
                if request == START:
                    self.control.send_bytes(str(self._fork()).encode())
                else:
                    self.control.send_bytes(str(self._end(int(request.removeprefix(END)))).encode())

    def _fork(self) -> int:
        channel = Connection(recv_handle(self.control))
        self._reap()
        child = os.fork()
        if child == 0:
            self.control.close()
            with suppress(EOFError, ConnectionError):
                DecodingProcess(channel, self.modalities).run()
            os._exit(0)
        channel.close()
        self._running.add(child)
        return child

    def _reap(self) -> None:
        """Collect the processes that have ended."""
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                self._running.discard(found[0])
                if found[1]:
                    self._ended[found[0]] = found[1]

    def _end(self, child: int) -> int:
        """Return the status with which a fork has ended; one that is running is killed."""
        self._reap()
        if child in self._running:
            self._running.remove(child)
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        return self._ended.pop(child, signal.SIGKILL)


class DecodingProcess:
    """A fork that decodes files."""

    def __init__(self, channel: Connection, modalities: Mapping[str, Modality]) -> None:
        self.channel, self.modalities = channel, modalities
        self._base = self._allowance = self._reserved = 0
        LIMIT.on_reserve = self._reserve

    def run(self) -> None:
        """Decode files until the replica closes the socket, or a file has taken so much memory that some may remain."""
        while self._reserved <= _MAX_KEPT_BYTES:
            header, _, content = self.channel.recv_bytes().partition(SEPARATOR)
            reply, arrays = self._decode(json.loads(header), content)
            parts = [json.dumps(reply).encode(), *(array.tobytes() for array in arrays.values())]
            self.channel.send_bytes(SEPARATOR.join([parts[0], b"".join(parts[1:])]))

    def _decode(self, request: Mapping[str, Any], content: bytes) -> tuple[dict[str, Any], Features]:
        LIMIT.max_bytes, self._allowance = request["memory"], request["allowance"]
        self._base, self._reserved = _data_bytes(), 0
        _limit_memory(self._base + self._allowance)
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        started = time.process_time()
        arrays: Features = {}
        reply: dict[str, Any] = {}
        try:
            found = _decode(self.modalities[request["input"]], content, request["part"])
            arrays = {name: np.asarray(array) for name, array in found.items()}
        except InvalidInputError as error:
            reply = {"error": error.reason, "is_missing": isinstance(error, MissingInputError)}
        except MemoryError:
            reply = {"error": "takes more memory to decode than its header states", "is_missing": False}
        except Exception as error:  # noqa: BLE001 - whatever a file makes a decoder raise is an error of the file
            reply = {"error": f"cannot be processed ({type(error).__name__})", "is_missing": False}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _limit_memory(resource.RLIM_INFINITY)
        described = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
        seconds, is_last = time.process_time() - started, self._reserved > _MAX_KEPT_BYTES
        return {**reply, "arrays": described, "seconds": seconds, "is_last": is_last}, arrays

    def _reserve(self, num_bytes: int) -> None:
        """Ask the replica for memory above the allowance, which several processes share, and wait for it."""
        if num_bytes <= max(self._reserved, self._allowance // 2):
            return
        self._reserved = num_bytes
        self.channel.send_bytes(json.dumps({"reserve": num_bytes}).encode())
        assert self.channel.recv_bytes() == GRANTED
        _limit_memory(self._base + self._allowance + num_bytes)


def _decode(modality: Modality, content: bytes, part: tuple[float, float] | None) -> Features:
    """Return the arrays of a file, or the samples of a part of a sound: its beginning and its length in seconds."""
    if part is None:
        return modality.to_arrays(modality.decode(content))
    assert isinstance(modality, AudioModality)
    return {"samples": modality.decode_from(content, *part)}


def _load_decoders(modalities: Mapping[str, Modality]) -> None:
    """Import the libraries of each input."""
    with suppress(ImportError):
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    for modality in modalities.values():
        modality.load_libraries()


def _limit_privileges() -> None:
    """Write no file and no core dump."""
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the replica decides when to stop


def _limit_memory(num_bytes: int) -> None:
    """Limit the memory of this process; only Linux counts all of it for RLIMIT_DATA."""
    if not _STATM.exists():
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, hard))


def _data_bytes() -> int:
    """Return the bytes that count for RLIMIT_DATA."""
    return int(_STATM.read_bytes().split()[5]) * resource.getpagesize() if _STATM.exists() else 0


if __name__ == "__main__":
    ForkServer(Connection(int(sys.argv[1]))).run()
