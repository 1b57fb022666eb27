"""A Ray cluster on this machine that outlives the command that started it.

    cluster = start(default_state_dir())        # or return the running one
    os.environ.update(cluster.environment)      # before ray is imported
    stop(default_state_dir())                   # end its processes and no others

It is isolated from any other Ray on the machine: it has free ports on loopback, a token and a folder for sockets and
logs that no other cluster uses.
"""

import fcntl
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil

from rayfuse.errors import ResourceError
from rayfuse.ray_auth import ensure_token
from rayfuse.ray_patches import LOOPBACK_ENV, SERVE_ENV
from rayfuse.temp_dirs import socket_base_dir

_MARKER_ENV = "RAYFUSE_LOCAL_CLUSTER"
_STATE_FILE = "cluster.json"
_LOOPBACK = "127.0.0.1"
_PORTS = (
    "port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port",
    "metrics-export-port", "node-manager-port", "object-manager-port", "ray-client-server-port",
)  # fmt: skip
_PORT_RANGE = range(20_000, 32_768)
"""Below Linux's ephemeral ports, so that no connection takes one between the check and the start."""
_random = random.SystemRandom()  # two processes with one seed would choose the same ports

_EXCLUDED_ENV = ("RAY_ADDRESS", "RAYFUSE_API_KEYS", "RAYFUSE_API_KEY")
_RAY_ENV = {**LOOPBACK_ENV, "RAY_USAGE_STATS_ENABLED": "0"}
_RAY_HEAD_ENV = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", **SERVE_ENV}
_RAY_TEMP_SUBDIR = "r"
"""Folder for Ray inside the private one: Ray makes its folder accessible to all users of the machine."""
_SESSION_LENGTH = 87
"""Maximum length of what Ray and this module add to the folder for sockets."""


@dataclass(frozen=True)
class LocalCluster:
    """A local cluster, as recorded in its state file."""

    address: str
    """`host:port` for `ray.init(address=…)`."""
    dashboard_url: str
    """URL of the Ray dashboard."""
    token: str
    """Token of Ray's authentication."""
    pid: int
    """Id of the process that leads the session of Ray's processes."""
    create_time: float
    """Start time of that process, in seconds since the epoch: another program may reuse the id."""
    marker: str
    """Value of an environment variable that marks the processes of its jobs."""
    temp_dir: str
    """Folder for sockets and logs."""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that a process needs before it imports ray, to connect to the cluster."""
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return {"RAY_ADDRESS": self.address, **token, **_RAY_ENV}


def default_state_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for the state of this user's local cluster: $XDG_STATE_HOME/rayfuse."""
    base = environment.get("XDG_STATE_HOME") or Path(
        environment.get("HOME") or Path.home(), ".local", "state"
    )
    return Path(base) / "rayfuse"


def state_file(state_dir: Path) -> Path:
    """Return the JSON file in `state_dir` that records the cluster, with the token of its dashboard."""
    return state_dir / _STATE_FILE


def start(state_dir: Path, *, num_cpus: int | None = None, timeout: float = 120.0) -> LocalCluster:
    """Return the running cluster recorded in the folder `state_dir`, or start one.

    `num_cpus` sets the CPUs of a new cluster, by default all of this machine. Raises ResourceError where Ray does not
    start within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    with _lock_state(state_dir):
        running = find(state_dir)
        if running:  # it may still be starting, if the command that started it was killed
            _wait_until_up(running, deadline)
            return running
        _remove_cluster(state_dir)
        cluster = _launch(num_cpus)
        try:
            write_state(state_dir, cluster)
            _wait_until_up(cluster, deadline)
        except BaseException:
            _terminate(cluster)
            state_file(state_dir).unlink(missing_ok=True)
            raise
        return cluster


def find(state_dir: Path) -> LocalCluster | None:
    """Return the cluster recorded in the folder `state_dir`; None where its leading process has ended."""
    recorded = _read_state(state_dir)
    return recorded if recorded and _leader_process(recorded) else None


def stop(state_dir: Path) -> bool:
    """End the processes of the recorded cluster and delete its folder; return whether one was recorded.

    Raises ResourceError where a process does not end.
    """
    if not state_file(state_dir).exists():
        return False
    with _lock_state(state_dir):
        return _remove_cluster(state_dir)


def processes(cluster: LocalCluster) -> list[psutil.Process]:
    """Return all live processes of a cluster, including orphaned ones.

    Ray's processes are in the session of the leader. Those that jobs start in other sessions have the marker in their
    environment, which Ray's agents overwrite with their names: so both are checked.
    """
    return [process for process in psutil.process_iter() if _is_cluster_process(process, cluster)]


def free_ports(count: int, host: str = _LOOPBACK) -> list[int]:
    """Return distinct ports that can be bound now; raise ResourceError where there are not enough."""
    found: dict[int, socket.socket] = {}
    try:
        for port in _random.sample(_PORT_RANGE, len(_PORT_RANGE)):
            if len(found) == count:
                break
            listener = socket.socket()
            found[port] = listener
            try:
                listener.bind((host, port))
            except OSError:
                found.pop(port).close()
    finally:
        for listener in found.values():
            listener.close()
    if len(found) < count:
        raise ResourceError(
            f"no {count} free ports between {_PORT_RANGE.start} and {_PORT_RANGE.stop} on {host}"
        )
    return list(found)


def _launch(num_cpus: int | None) -> LocalCluster:
    folder = _new_folder()
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    marker = uuid.uuid4().hex
    environment = head_environment(marker)
    with open(folder / "start.log", "wb") as log:
        process = subprocess.Popen(
            head_command(folder, ports, num_cpus),
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process.returncode = (
        0  # it outlives this process, and Popen warns about children that were not waited for
    )
    return LocalCluster(
        address=f"{_LOOPBACK}:{ports['port']}",
        dashboard_url=f"http://{_LOOPBACK}:{ports['dashboard-port']}",
        token=environment["RAY_AUTH_TOKEN"],
        pid=process.pid,
        create_time=_process_create_time(process.pid),
        marker=marker,
        temp_dir=str(folder),
    )


def head_environment(marker: str) -> dict[str, str]:
    """Return the environment of a new head: this process's, without addresses, tokens and API keys."""
    inherited = {
        k: v for k, v in os.environ.items() if k not in _EXCLUDED_ENV and not k.startswith("RAY_AUTH_")
    }
    environment = {**inherited, **_RAY_ENV, **_RAY_HEAD_ENV, _MARKER_ENV: marker}
    ensure_token(environment)
    return environment


def head_command(folder: Path, ports: Mapping[str, int], num_cpus: int | None) -> list[str]:
    """Return the command of a new head: `ray start` of this Python, on loopback, with these ports.

    With `--block` its process stays and ends the others when one of them fails.
    """
    arguments = [f"--{name}={port}" for name, port in ports.items()]
    amount = [] if num_cpus is None else [f"--num-cpus={num_cpus}"]
    return [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--no-monitor", "--disable-usage-stats",
        f"--node-ip-address={_LOOPBACK}", f"--dashboard-host={_LOOPBACK}", f"--temp-dir={folder / _RAY_TEMP_SUBDIR}",
        "--min-worker-port=0", "--max-worker-port=0", *arguments, *amount,
    ]  # fmt: skip


def _new_folder() -> Path:
    base = socket_base_dir(_SESSION_LENGTH)
    os.makedirs(base, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="rayfuse-", dir=base))


def _process_create_time(pid: int) -> float:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


def _wait_until_up(cluster: LocalCluster, deadline: float) -> None:
    """Wait until the dashboard reports the cluster's status."""
    headers = {"Authorization": f"Bearer {cluster.token}"}
    with httpx.Client(base_url=cluster.dashboard_url, headers=headers, trust_env=False, timeout=5) as client:
        while not _is_up(client):
            if not _leader_process(cluster):
                raise ResourceError(f"Ray did not start: {_last_log_line(Path(cluster.temp_dir))}")
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"Ray did not start in time on {cluster.address}; check this machine's free memory and CPU load"
                )
            time.sleep(0.2)


def _is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/api/cluster_status").is_success
    except httpx.HTTPError:
        return False


def _last_log_line(folder: Path) -> str:
    lines = (folder / "start.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _remove_cluster(state_dir: Path) -> bool:
    """End the processes of the recorded cluster, if any, and delete the record."""
    recorded = _read_state(state_dir)
    if recorded:
        _terminate(recorded)
    state_file(state_dir).unlink(missing_ok=True)
    return recorded is not None


def _terminate(cluster: LocalCluster) -> None:
    """Terminate the leader, which ends the others; then terminate, and then kill, those that remain."""
    leader = _leader_process(cluster)
    if leader:
        with suppress(psutil.NoSuchProcess):
            leader.terminate()
        psutil.wait_procs([leader], timeout=15)
    for force, timeout in ((False, 5), (True, 10)):
        remaining = processes(cluster)
        for process in remaining:
            with suppress(psutil.NoSuchProcess):
                process.kill() if force else process.terminate()
        psutil.wait_procs(remaining, timeout=timeout)
    remaining = processes(cluster)
    if remaining:
        pids = ", ".join(str(process.pid) for process in remaining)
        raise ResourceError(f"processes of the local Ray cluster did not end: {pids}; kill them")
    shutil.rmtree(cluster.temp_dir, ignore_errors=True)


def _leader_process(cluster: LocalCluster) -> psutil.Process | None:
    with suppress(psutil.Error):
        process = psutil.Process(cluster.pid)
        same = abs(process.create_time() - cluster.create_time) < 1
        if same and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _is_cluster_process(process: psutil.Process, cluster: LocalCluster) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE or process.create_time() < cluster.create_time - 1:
            return False
        return _in_session(process, cluster) or process.environ().get(_MARKER_ENV) == cluster.marker
    except (psutil.Error, OSError):
        return False


def _in_session(process: psutil.Process, cluster: LocalCluster) -> bool:
    # A session id is not reused while the session has members, so only the leader can be another program.
    return os.getsid(process.pid) == cluster.pid and (
        process.pid != cluster.pid or _leader_process(cluster) is not None
    )


def _read_state(state_dir: Path) -> LocalCluster | None:
    try:
        return LocalCluster(**json.loads(state_file(state_dir).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_state(state_dir: Path, cluster: LocalCluster) -> None:
    """Record a cluster in the folder `state_dir`, readable by this user only because of the token."""
    temporary = state_dir / f"{_STATE_FILE}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(cluster), file, indent=1)
    temporary.replace(state_file(state_dir))


@contextmanager
def _lock_state(state_dir: Path) -> Iterator[None]:
    """Lock the folder: one command at a time starts or stops its cluster."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(state_dir / "cluster.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
