"""Decoding of untrusted files in separate processes, which can crash without the replica.

The processes share a limit of memory: a file whose header states much of it waits for others. Their CPU time counts
towards that of its request. See `rayfuse.serving.decoding_process` for the other side.
"""

import json
import logging
import math
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from queue import LifoQueue
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from rayfuse.errors import InvalidInputError, MissingInputError, ResourceError
from rayfuse.formatting import format_bytes
from rayfuse.modalities import Features
from rayfuse.model.predictor import Predictor
from rayfuse.serving import decoding_process as messages
from rayfuse.serving.decode_budgets import CpuBudget, MemoryBudget
from rayfuse.spec.inputs import Input

_ALLOWANCE = 64_000_000
"""Bytes that each process may take without asking."""
_START_SECONDS = 60.0
_MAX_WAIT_SECONDS = 120.0
"""Time without a reply after which a process is stopped: CPU time is limited, but a decoder may wait for itself."""
_DTYPES = ("<f4", "<f8", "|u1", "<i8")
_INHERITED = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")
_FRUGAL = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_MMAP_THRESHOLD_": "16000000",  # glibc returns larger blocks when they are freed
    "MALLOC_TRIM_THRESHOLD_": "16000000",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

_log = logging.getLogger(__name__)


class Decoders:
    """Processes that decode the files of some inputs, started at the first file or by `start`.

    `max_memory`: bytes that they may take together, in addition to what an idle process takes.
    """

    def __init__(self, inputs: Mapping[str, Input], num_processes: int, max_memory: int) -> None:
        self.num_processes = num_processes
        """Largest number of processes."""
        self._inputs = TypeAdapter(dict[str, Input]).dump_json(dict(inputs)) if inputs else b""
        self._lock = threading.Lock()
        self._server: _ForkServer | None = None
        self._memory = MemoryBudget(0)
        self._slots: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(num_processes):
            self._slots.put(None)
        self.limit_memory(max_memory)

    @classmethod
    def for_predictor(cls, predictor: Predictor, num_processes: int, max_memory: int) -> "Decoders":
        """Return the decoders of the inputs of a model whose files are decoded in processes."""
        isolated = predictor.preprocessor.isolated_inputs
        inputs = {name: options for name, options in predictor.job.inputs.items() if name in isolated}
        return cls(inputs, num_processes, max_memory)

    def limit_memory(self, max_memory: int) -> None:
        """Change the bytes that the processes may take together; files that are being decoded keep theirs."""
        self._allowance = min(_ALLOWANCE, max_memory // (4 * self.num_processes))
        total = max_memory - self.num_processes * self._allowance
        if total != self._memory.total:
            self._memory = MemoryBudget(total)

    def start(self) -> None:
        """Start the parent of the processes, unless no input needs them. Raises ResourceError if it cannot start."""
        with self._lock:
            if self._inputs and (self._server is None or not self._server.is_running):
                self._server = _ForkServer(self._inputs)

    def decode(self, name: str, content: bytes, budget: CpuBudget) -> Features:
        """Decode a file of an input in a process, to the result of `Modality.to_arrays`.

        Raises InvalidInputError if it is invalid, or takes too much memory or time, MissingInputError if it has no
        content for the input, ResourceError if no process can be started.
        """
        return self._decode(name, content, None, budget)

    def decode_sound(
        self, name: str, content: bytes, start: float, seconds: float, budget: CpuBudget
    ) -> np.ndarray:
        """Decode `seconds` of a sound from `start` on in a process, float32 (samples,); empty behind its end.

        Raises as `decode` does.
        """
        return self._decode(name, content, (start, seconds), budget)["samples"]

    def _decode(
        self, name: str, content: bytes, part: tuple[float, float] | None, budget: CpuBudget
    ) -> Features:
        process = self._slots.get()
        try:
            with budget.share() as share:
                if process is None or process.has_ended:
                    process = self._fork()
                request = {
                    "input": name,
                    "part": part,
                    "seconds": share.seconds,
                    "memory": self._memory.total,
                    "allowance": self._allowance + 3 * len(content),
                }
                try:
                    reply, arrays = process.call(request, content, self._memory)
                except (EOFError, OSError, ValueError) as error:
                    status, process = self._end(process), None
                    share.used = share.seconds if _is_timeout(status) else share.seconds / 2
                    raise self._explain(status, error, budget) from None
                share.used = reply["seconds"]
                if reply["is_last"]:
                    process.close()
                    process = None
        finally:
            self._slots.put(process)
        if "error" in reply:
            raise (MissingInputError if reply["is_missing"] else InvalidInputError)(reply["error"])
        return arrays

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            if self._server is not None:
                self._server.close()
                self._server = None

    def _fork(self) -> "_Process":
        for is_last in (False, True):
            self.start()
            try:
                with self._lock:
                    assert self._server is not None
                    return self._server.fork()
            except (EOFError, OSError) as error:
                self.close()
                if is_last:
                    raise ResourceError(f"no process that decodes files can be started: {error}") from None
        raise AssertionError

    def _end(self, process: "_Process") -> int:
        """End a process that does not reply, and return its status."""
        process.close()
        with self._lock, suppress(EOFError, OSError):
            if self._server is not None:
                return self._server.end(process.pid)
        return signal.SIGKILL

    def _explain(self, status: int, error: Exception, budget: CpuBudget) -> InvalidInputError:
        if _is_timeout(status):
            return budget.exceeded()
        _log.warning("a process that decodes files ended with status %d: %r", status, error)
        return InvalidInputError(
            "the file cannot be decoded: it makes its decoder crash, or take more than the "
            f"{format_bytes(self._memory.total)} of memory that remain of limits.max_decode_memory"
        )


def _is_timeout(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF


class _Process:
    """A process that decodes one file after another."""

    def __init__(self, channel: Connection, pid: int) -> None:
        self.channel, self.pid = channel, pid
        self._poll = select.poll()
        self._poll.register(channel.fileno(), select.POLLIN)

    @property
    def has_ended(self) -> bool:
        """True if an idle process has ended, which sends nothing by itself."""
        return bool(self._poll.poll(0))

    def call(
        self, request: Mapping[str, Any], content: bytes, memory: MemoryBudget
    ) -> tuple[dict[str, Any], Features]:
        """Send a file and return the reply, with the arrays of the decoded value.

        Raises EOFError or OSError if the process ends, ValueError for an invalid reply.
        """
        self.channel.send_bytes(messages.SEPARATOR.join([json.dumps(request).encode(), content]))
        with ExitStack() as held:
            while "reserve" in (found := self._receive(memory.total))[0]:
                held.close()  # it waits for the sum, so that two processes do not wait for each other
                held.enter_context(memory.hold(int(found[0]["reserve"])))
                self.channel.send_bytes(messages.GRANTED)
            reply, content = found
            return reply, _read_arrays(reply["arrays"], content)

    def close(self) -> None:
        """Close the connection, upon which an idle process ends."""
        self.channel.close()

    def _receive(self, max_bytes: int) -> tuple[dict[str, Any], bytes]:
        if not self._poll.poll(_MAX_WAIT_SECONDS * 1000):
            raise TimeoutError
        header, _, content = self.channel.recv_bytes(max_bytes).partition(messages.SEPARATOR)
        return json.loads(header), content


def _read_arrays(described: list[Any], content: bytes) -> Features:
    if any(dtype not in _DTYPES for _, dtype, _ in described):
        raise ValueError("arrays of unexpected types")
    buffer = bytearray(content)  # arrays of bytes cannot be written
    arrays, place = {}, 0
    for name, dtype, shape in described:
        count = math.prod(shape)
        arrays[name] = np.frombuffer(buffer, dtype, count, place).reshape(shape)
        place += arrays[name].nbytes
    return arrays


class _ForkServer:
    """The parent of the processes."""

    def __init__(self, inputs: bytes) -> None:
        self._control, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", messages.__name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        try:
            self._control.send_bytes(inputs)
            if not self._control.poll(_START_SECONDS):
                raise TimeoutError(f"no response within {_START_SECONDS:g} s")
            assert self._control.recv_bytes() == messages.READY
        except (EOFError, OSError) as error:
            self.close()
            raise ResourceError(f"the process that decodes files cannot be started: {error!r}") from None

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def fork(self) -> _Process:
        ours, theirs = Pipe()
        with theirs:
            self._control.send_bytes(messages.START)
            send_handle(self._control, theirs.fileno(), self._process.pid)
            return _Process(ours, int(self._control.recv_bytes()))

    def end(self, pid: int) -> int:
        """End a process, and return its status."""
        self._control.send_bytes(messages.END + str(pid).encode())
        return int(self._control.recv_bytes())

    def close(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    """Return the environment of a process that gets files of others: no secrets, and modules from the same places."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    path = os.pathsep.join(filter(None, sys.path))
    return {**inherited, **_FRUGAL, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
