"""A Ray cluster of several nodes on this machine, with its own token, ports and folder.

`rayfuse.cluster.local` has one node only: Ray lets several share a machine only if they listen beyond loopback.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from rayfuse.cluster.local import free_ports

_START_SECONDS = 600
_START_ATTEMPTS = 3
_HEAD_PORTS = ("port", "dashboard-port", "ray-client-server-port")
_NODE_PORTS = (
    "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port",
    "node-manager-port", "object-manager-port",
)  # fmt: skip


class Nodes:
    """A head without CPUs, and a worker node for each of the numbers of CPUs, started with a command prefix."""

    def __init__(self, *cpus: int, before: Sequence[str] = ()) -> None:
        self._before = list(before)
        self._folder = Path(tempfile.mkdtemp(prefix="rf-", dir="/tmp"))  # a socket's path must be short
        self._processes: list[subprocess.Popen[bytes]] = []
        self._killed: set[int] = set()
        self._token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._ports = free_ports(len(_HEAD_PORTS) + len(_NODE_PORTS) * (1 + len(cpus)))
        try:
            self.address = self._head()
            for count in cpus:
                log = self._start(f"--address={self.address}", f"--num-cpus={count}")
                self._found(log, "Ray runtime started", ".")
            self._wait_for(len(cpus) + 1)
        except BaseException:
            self.stop()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a driver, which replace all others of Ray."""
        others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {**others, **self._token, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": self.address}

    def add(self, cpus: int) -> int:
        """Start another worker node and return its number; on a busy machine, Ray gives up some starts."""
        for attempt in range(_START_ATTEMPTS):
            self._ports += free_ports(len(_NODE_PORTS))
            log = self._start(f"--address={self.address}", f"--num-cpus={cpus}")
            number = len(self._processes) - 1
            try:
                self._found(log, "Ray runtime started", ".")
                break
            except AssertionError:
                if attempt + 1 == _START_ATTEMPTS or self._processes[number].poll() is None:
                    raise
                self._killed.add(self._processes[number].pid)
        return number

    def kill(self, number: int) -> None:
        """Kill a node and all of its processes, as in a power cut; 0 is the head."""
        process = self._processes[number]
        self._killed.add(process.pid)
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.wait(20)

    def manager_port(self, number: int) -> int:
        """Return the port that identifies a node in Ray's list of nodes."""
        [option] = [o for o in self._processes[number].args if str(o).startswith("--node-manager-port=")]
        return int(str(option).partition("=")[2])

    def processes(self, number: int) -> list[psutil.Process]:
        """Return the processes of a node."""
        return psutil.Process(self._processes[number].pid).children(recursive=True)

    def stop(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _head(self) -> str:
        ports = self._take(_HEAD_PORTS)
        log = self._start(
            "--head", "--num-cpus=0", "--no-monitor", f"--temp-dir={self._folder / 'r'}", *ports
        )
        return self._found(log, "--address='", "'")

    def _take(self, names: tuple[str, ...]) -> list[str]:
        return [f"--{name}={self._ports.pop()}" for name in names]

    def _start(self, *options: str) -> Path:
        command = [*self._before, sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command += ["--disable-usage-stats"]
        command += ["--min-worker-port=0", "--max-worker-port=0", *options, *self._take(_NODE_PORTS)]
        log = self._folder / f"{len(self._processes)}.log"
        others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        environment = {**others, **self._token, **settings}
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        self._processes.append(process)
        return log

    def _found(self, log: Path, before: str, after: str) -> str:
        """Wait for a text between two others in a log, and return it."""
        deadline = time.monotonic() + _START_SECONDS
        while before not in (text := log.read_text()):
            self._check(deadline)
            time.sleep(0.1)
        return text.partition(before)[2].partition(after)[0]

    def _wait_for(self, count: int) -> None:
        script = "import ray; ray.init(logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"
        deadline = time.monotonic() + _START_SECONDS
        while True:
            done = subprocess.run(
                [sys.executable, "-c", script],
                env=self.environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 0 and int(done.stdout.split()[-1]) == count:
                return
            self._check(deadline)

    def _check(self, deadline: float) -> None:
        logs = "\n".join(path.read_text()[-2000:] for path in sorted(self._folder.glob("*.log")))
        lost = [p for p in self._processes if p.poll() is not None and p.pid not in self._killed]
        assert not lost, logs
        assert time.monotonic() < deadline, logs
