"""The local cluster without Ray: ports, state file, and termination of processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from rayfuse.cluster import local
from rayfuse.cluster.local import LocalCluster
from rayfuse.ray_patches import LOOPBACK_ENV, SERVE_ENV

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def leader(tmp_path: Path) -> Iterator[LocalCluster]:
    """Return a cluster that is one sleeping process, recorded in TMP/state."""
    folder = tmp_path / "ray"
    folder.mkdir()
    process = subprocess.Popen(SLEEP, start_new_session=True, env={**os.environ, local._MARKER_ENV: "m"})
    created = psutil.Process(process.pid).create_time()
    cluster = LocalCluster(
        "127.0.0.1:1", "http://127.0.0.1:2", "secret", process.pid, created, "m", str(folder)
    )
    record(tmp_path / "state", cluster)
    yield cluster
    process.kill()
    process.wait()


def record(state: Path, cluster: LocalCluster) -> None:
    state.mkdir(exist_ok=True)
    local.write_state(state, cluster)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_free_ports_are_distinct_and_below_the_ephemeral_ones() -> None:
    ports = local.free_ports(20)
    assert len(set(ports)) == 20
    assert max(ports) < 32_768


def test_the_state_folder_follows_xdg() -> None:
    assert local.default_state_dir({"XDG_STATE_HOME": "/x"}) == Path("/x/rayfuse")
    assert local.default_state_dir({"HOME": "/h"}) == Path("/h/.local/state/rayfuse")


def test_no_record_is_no_cluster(tmp_path: Path) -> None:
    assert local.find(tmp_path / "state") is None
    assert not local.stop(tmp_path / "state")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_corrupt_record_is_no_cluster(tmp_path: Path, content: str) -> None:
    (tmp_path / "cluster.json").write_text(content)
    assert local.find(tmp_path) is None
    assert not local.stop(tmp_path)
    assert not (tmp_path / "cluster.json").exists()


def test_a_recorded_cluster_is_found_and_private(tmp_path: Path, leader: LocalCluster) -> None:
    assert local.find(tmp_path / "state") == leader
    path = tmp_path / "state" / "cluster.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text()) == asdict(leader)


def test_processes_with_a_reused_id_are_not_ended(tmp_path: Path, leader: LocalCluster) -> None:
    record(tmp_path / "state", replace(leader, create_time=leader.create_time - 1000, marker="another"))
    assert local.find(tmp_path / "state") is None
    assert local.stop(tmp_path / "state")
    assert alive(leader.pid)
    assert local.find(tmp_path / "state") is None


def test_stop_ends_the_cluster_and_nothing_else(tmp_path: Path, leader: LocalCluster) -> None:
    marked = subprocess.Popen(SLEEP, start_new_session=True, env={**os.environ, local._MARKER_ENV: "m"})
    stranger = subprocess.Popen(SLEEP, start_new_session=True, env={**os.environ, local._MARKER_ENV: "n"})
    try:
        wait_for(lambda: len(local.processes(leader)) == 2)
        assert local.stop(tmp_path / "state")
        assert not alive(leader.pid)
        assert not alive(marked.pid)
        assert alive(stranger.pid)
        assert not Path(leader.temp_dir).exists()
        assert not local.stop(tmp_path / "state")
    finally:
        for process in (marked, stranger):
            process.kill()
            process.wait()


def test_processes_of_a_dead_leader_are_ended(tmp_path: Path, leader: LocalCluster) -> None:
    orphan = subprocess.Popen(SLEEP, start_new_session=True, env={**os.environ, local._MARKER_ENV: "m"})
    try:
        os.kill(leader.pid, 9)
        wait_for(lambda: not alive(leader.pid))
        assert local.find(tmp_path / "state") is None
        wait_for(lambda: len(local.processes(leader)) == 1)
        assert local.stop(tmp_path / "state")
        assert not alive(orphan.pid)
    finally:
        orphan.kill()
        orphan.wait()


def test_keys_and_other_clusters_do_not_leak_into_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAYFUSE_API_KEYS"):
        monkeypatch.setenv(name, "outside")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    environment = local.head_environment("m")
    assert "outside" not in {
        environment.get(name) for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAYFUSE_API_KEYS")
    }
    assert environment["RAY_AUTH_MODE"] == "token"
    assert len(environment["RAY_AUTH_TOKEN"]) >= 32
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_the_proxy_of_a_new_cluster_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVE_SOCKET_REUSE_PORT_ENABLED", "0")
    environment = local.head_environment("m")
    assert environment.items() >= {**SERVE_ENV, **LOOPBACK_ENV}.items()


def test_every_port_and_address_of_ray_is_given(tmp_path: Path) -> None:
    ports = dict(zip(local._PORTS, range(1, 100), strict=False))
    command = local.head_command(tmp_path, ports, num_cpus=3)
    assert {"--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"} <= set(command)
    assert all(f"--{name}={port}" in command for name, port in ports.items())
    assert "--num-cpus=3" in command


def wait_for(condition: object, seconds: float = 10.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
