"""A Ray cluster on this machine that outlives the command that started it.

    cluster = start(default_state())            # or the one that already runs
    os.environ.update(cluster.environment)      # before ray is imported
    stop(default_state())                       # ends its processes and no others

Every port listens on loopback and was free, the token is its own, and so is the folder for sockets and
logs: it meets no other Ray on the machine.
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

_MARK = "RAYFUSE_LOCAL_CLUSTER"
_STATE = "cluster.json"
_LOOPBACK = "127.0.0.1"
_PORTS = (
    "port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port",
    "metrics-export-port", "node-manager-port", "object-manager-port", "ray-client-server-port",
)  # fmt: skip
_PORT_RANGE = range(20_000, 32_768)
"""Below the ports that Linux hands out itself, so that none is taken between the look and the start."""

_NOT_INHERITED = ("RAY_ADDRESS", "RAYFUSE_API_KEYS", "RAYFUSE_API_KEY")
_SETTINGS = {
    # Ray replaces 127.0.0.1 by an outside address of the machine, and then listens on all of them, unless it
    # believes that this platform has no multi-node clusters.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_CLUSTER_SETTINGS = {
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # A second Serve on a port would share its requests instead of failing.
    "SERVE_SOCKET_REUSE_PORT_ENABLED": "0",
}
_RAYS_FOLDER = "r"
"""Ray opens its folder to everyone on the machine; so it gets one inside a folder that is ours alone."""
_LONGEST_FOLDER = 20
"""Of the folder for temporary files: we and Ray add up to 85 characters, and a Unix socket's path has at most 107."""


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster. `pid` leads the session that all of its own processes belong to."""

    address: str
    dashboard: str
    token: str
    pid: int
    created: float
    """When the leading process started: a process id alone may have passed to another program."""
    mark: str
    folder: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process must have in its environment, before it imports ray, to be let in."""
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return {"RAY_ADDRESS": self.address, **token, **_SETTINGS}


def default_state(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder that keeps what this user has running here."""
    base = environment.get("XDG_STATE_HOME") or Path(
        environment.get("HOME") or Path.home(), ".local", "state"
    )
    return Path(base) / "rayfuse"


def state_file(state: Path) -> Path:
    """The JSON file in the folder `state` that records the cluster; its `token` is what Ray's web page asks for."""
    return state / _STATE


def start(state: Path, *, cpus: int | None = None, timeout: float = 120.0) -> LocalCluster:
    """The cluster recorded in the folder `state`; where none runs, a new one.

    `cpus` is how many a new cluster offers, by default all of this machine. Raises ResourceError where Ray
    does not come up.
    """
    deadline = time.monotonic() + timeout
    with _locked(state):
        running = find(state)
        if running:  # perhaps it is still coming up, and the command that started it was killed
            _wait_until_up(running, deadline)
            return running
        _clear(state)
        cluster = _launch(cpus)
        try:
            _write(state, cluster)
            _wait_until_up(cluster, deadline)
        except BaseException:
            _end(cluster)
            state_file(state).unlink(missing_ok=True)
            raise
        return cluster


def find(state: Path) -> LocalCluster | None:
    """The cluster recorded in the folder `state` if its leading process still lives."""
    recorded = _read(state)
    return recorded if recorded and _leader(recorded) else None


def stop(state: Path) -> bool:
    """End the recorded cluster: its processes and its folder. Returns whether one was recorded.

    Raises ResourceError where a process cannot be ended.
    """
    if not state_file(state).exists():
        return False
    with _locked(state):
        return _clear(state)


def processes(cluster: LocalCluster) -> list[psutil.Process]:
    """Every live process of a cluster, the orphaned ones included.

    Ray's own stay in the session of the leader; what jobs start elsewhere still carries the mark in its
    environment. Neither alone would do: Ray's agents write their names over their environment.
    """
    return [process for process in psutil.process_iter() if _belongs(process, cluster)]


def free_ports(count: int, host: str = _LOOPBACK) -> list[int]:
    """Distinct ports on which nothing listens now."""
    found: dict[int, socket.socket] = {}
    try:
        for port in random.sample(_PORT_RANGE, len(_PORT_RANGE)):
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


def _launch(cpus: int | None) -> LocalCluster:
    folder = _new_folder()
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    mark = uuid.uuid4().hex
    environment = _environment(mark)
    with open(folder / "start.log", "wb") as log:
        process = subprocess.Popen(
            _command(folder, ports, cpus),
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process.returncode = 0  # it is to outlive us, and Popen complains about processes that nobody waited for
    return LocalCluster(
        address=f"{_LOOPBACK}:{ports['port']}",
        dashboard=f"http://{_LOOPBACK}:{ports['dashboard-port']}",
        token=environment["RAY_AUTH_TOKEN"],
        pid=process.pid,
        created=_created(process.pid),
        mark=mark,
        folder=str(folder),
    )


def _environment(mark: str) -> dict[str, str]:
    inherited = {
        k: v for k, v in os.environ.items() if k not in _NOT_INHERITED and not k.startswith("RAY_AUTH_")
    }
    environment = {**inherited, **_SETTINGS, **_CLUSTER_SETTINGS, _MARK: mark}
    ensure_token(environment)
    return environment


def _command(folder: Path, ports: Mapping[str, int], cpus: int | None) -> list[str]:
    """`ray start` of this Python; `--block` keeps the leader, which ends the others when one of them dies."""
    arguments = [f"--{name}={port}" for name, port in ports.items()]
    amount = [] if cpus is None else [f"--num-cpus={cpus}"]
    return [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--no-monitor", "--disable-usage-stats",
        f"--node-ip-address={_LOOPBACK}", f"--dashboard-host={_LOOPBACK}", f"--temp-dir={folder / _RAYS_FOLDER}",
        "--min-worker-port=0", "--max-worker-port=0", *arguments, *amount,
    ]  # fmt: skip


def _new_folder() -> Path:
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="rayfuse-", dir=base if len(base) <= _LONGEST_FOLDER else "/tmp"))


def _created(pid: int) -> float:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


def _wait_until_up(cluster: LocalCluster, deadline: float) -> None:
    """Until the dashboard answers and the cluster has its node."""
    headers = {"Authorization": f"Bearer {cluster.token}"}
    with httpx.Client(base_url=cluster.dashboard, headers=headers, trust_env=False, timeout=5) as client:
        while not _answers(client):
            if not _leader(cluster):
                raise ResourceError(f"Ray did not start: {_last_words(Path(cluster.folder))}")
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"Ray did not come up in time on {cluster.address}; is this machine out of memory or very busy?"
                )
            time.sleep(0.2)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/api/cluster_status").is_success
    except httpx.HTTPError:
        return False


def _last_words(folder: Path) -> str:
    lines = (folder / "start.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _clear(state: Path) -> bool:
    """End whatever is recorded, alive or half dead, and forget it."""
    recorded = _read(state)
    if recorded:
        _end(recorded)
    state_file(state).unlink(missing_ok=True)
    return recorded is not None


def _end(cluster: LocalCluster) -> None:
    """Ask the leader, which ends the others; then ask everyone; then insist."""
    leader = _leader(cluster)
    if leader:
        with suppress(psutil.NoSuchProcess):
            leader.terminate()
        psutil.wait_procs([leader], timeout=15)
    for force, patience in ((False, 5), (True, 10)):
        left = processes(cluster)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill() if force else process.terminate()
        psutil.wait_procs(left, timeout=patience)
    left = processes(cluster)
    if left:
        raise ResourceError(f"processes of the local Ray do not end: {', '.join(str(p.pid) for p in left)}")
    shutil.rmtree(cluster.folder, ignore_errors=True)


def _leader(cluster: LocalCluster) -> psutil.Process | None:
    with suppress(psutil.Error):
        process = psutil.Process(cluster.pid)
        same = abs(process.create_time() - cluster.created) < 1
        if same and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _belongs(process: psutil.Process, cluster: LocalCluster) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE or process.create_time() < cluster.created - 1:
            return False
        return _in_session(process, cluster) or process.environ().get(_MARK) == cluster.mark
    except (psutil.Error, OSError):
        return False


def _in_session(process: psutil.Process, cluster: LocalCluster) -> bool:
    """A session's number stays taken while it has members, so only a leader can be somebody else's."""
    return os.getsid(process.pid) == cluster.pid and (
        process.pid != cluster.pid or _leader(cluster) is not None
    )


def _read(state: Path) -> LocalCluster | None:
    try:
        return LocalCluster(**json.loads(state_file(state).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(state: Path, cluster: LocalCluster) -> None:
    """Readable for this user alone: it holds the token."""
    temporary = state / f"{_STATE}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(cluster), file, indent=1)
    temporary.replace(state_file(state))


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    """One command at a time starts or stops the cluster of a folder."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(state / "cluster.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
