"""The Ray cluster and the MLflow server that the demo starts and stops."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from rayfuse.cluster import local
from rayfuse.errors import ResourceError
from rayfuse.registry.mlflow_connection import database_path

_MLFLOW_TIMEOUT_SECONDS = 120.0


@contextmanager
def ray_cluster(state_dir: Path, num_cpus: int) -> Iterator[local.LocalCluster]:
    """Start a new local cluster and set its environment variables while this lasts."""
    local.stop(state_dir)
    cluster = local.start(state_dir, num_cpus=num_cpus)
    previous = {name: os.environ.get(name) for name in cluster.environment}
    os.environ.update(cluster.environment)
    try:
        yield cluster
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        local.stop(state_dir)


@contextmanager
def mlflow_server(tracking_uri: str) -> Iterator[str]:
    """Serve the MLflow UI of a SQLite database while this lasts; yield its URL, or `tracking_uri` if it is a server."""
    database = database_path(tracking_uri)
    if database is None:
        yield tracking_uri
        return
    [port] = local.free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking_uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--serve-artifacts"]
    command += ["--artifacts-destination", str(database.parent / "mlartifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # saves eight processes
    with (database.parent / "mlflow-server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            if not _is_healthy(url, process):
                raise ResourceError(f"the MLflow server did not start; see its log: {log.name}")
            yield url
        finally:
            _end_process_group(process)


def _is_healthy(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the server is healthy; return False where it has exited or does not start in time."""
    deadline = time.monotonic() + _MLFLOW_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2, trust_env=False).is_success:
                return True
        except httpx.HTTPError:
            time.sleep(0.3)
    return False


def _end_process_group(process: subprocess.Popen[bytes]) -> None:
    """End a server and its workers."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            break
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
