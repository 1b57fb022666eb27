"""`rayfuse doctor`: each check as a decision on given facts."""

import json
import os
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from rayfuse import extras
from rayfuse.api import diagnosis
from rayfuse.cli import main

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """Stand-in for MLflow: responds with `status`, or 401 where a password is required and missing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = not server.password_required or self.headers["Authorization"]
            self.send_response(server.status if allowed else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(HTTPServer):
        status = 200
        password_required = False

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def address(server: HTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_this_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code = main(["doctor", "--json"])
    answer = json.loads(capsys.readouterr().out)
    checks = {check["check"]: check for check in answer["checks"]}
    assert {"python", "extra train", "torch", "disk", "memory", "mlflow", "ray auth"} <= set(checks)
    assert "precision" in checks["torch"]["detail"]
    assert answer["ok"] == (code == 0)
    assert all(check["remedy"] for check in answer["checks"] if check["status"] != "ok")


def test_a_failure_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    assert main(["doctor"]) == 1
    assert "fail  mlflow: ./mlruns: MLflow no longer supports a file store" in capsys.readouterr().out


def test_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "train", ("json", "no_such_module"))
    finding = diagnosis.check_extra("train")
    assert (finding.status, finding.detail) == ("warn", "missing no_such_module")
    assert finding.remedy == "pip install 'rayfuse[train]'"


@pytest.mark.parametrize(
    ("usage", "status", "word"),
    [
        (Usage(100e9, 50e9, 50e9), "ok", "50.0 GB free"),
        (Usage(100e9, 92e9, 8e9), "warn", "8.0 GB free"),
        (Usage(1000e9, 960e9, 40e9), "warn", "over 95 % full"),
        (Usage(100e9, 99.5e9, 0.5e9), "fail", "0.5 GB free"),
    ],
)
def test_disk(monkeypatch: pytest.MonkeyPatch, usage: Usage, status: str, word: str) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    finding = diagnosis.check_disk("disk", Path("/x"))
    assert finding.status == status
    assert word in finding.detail


@pytest.mark.parametrize(("free", "status"), [(16e9, "ok"), (2e9, "warn"), (0.5e9, "fail")])
def test_memory(free: float, status: str) -> None:
    assert diagnosis.check_memory(free).status == status


def test_shared_memory_must_hold_rays_objects() -> None:
    assert diagnosis.check_shared_memory(free=10e9, memory=30e9).status == "ok"
    finding = diagnosis.check_shared_memory(free=64e6, memory=30e9)
    assert finding.status == "warn"
    assert "--shm-size=9g" in finding.remedy


@pytest.mark.parametrize(("limit", "free"), [("max", 8e9), ("4000000000", 3e9), ("90000000000", 8e9)])
def test_memory_is_what_the_container_may_use(tmp_path: Path, limit: str, free: float) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1 kB\nMemAvailable:    7812500 kB\n")
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text("1000000000\n")
    assert diagnosis.available_memory(tmp_path) == free


def test_the_lock_of_a_killed_build(tmp_path: Path) -> None:
    assert diagnosis.check_extension_locks({}, tmp_path).status == "ok"
    lock = tmp_path / ".cache/torch_extensions/py311_cpu/async_io/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    for path in (lock, lock.parent):
        os.utime(path, (0, 0))
    finding = diagnosis.check_extension_locks({}, tmp_path)
    assert (finding.status, finding.remedy) == ("warn", f"rm {lock}")
    assert lock.exists()


def test_no_tracking_server_is_fine() -> None:
    assert diagnosis.check_mlflow({}).status == "ok"


def test_a_database(tmp_path: Path) -> None:
    assert diagnosis.check_mlflow({"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}).status == "ok"
    finding = diagnosis.check_mlflow({"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/no/mlflow.db"})
    assert (finding.status, finding.remedy) == ("fail", f"mkdir -p {tmp_path}/no")


@pytest.mark.parametrize(
    ("answer", "status", "word"),
    [
        (200, "ok", "is reachable"),
        (404, "ok", "is reachable"),
        (403, "fail", "authentication failed (403)"),
        (500, "fail", "500"),
    ],
)
def test_a_server(server: HTTPServer, answer: int, status: str, word: str) -> None:
    server.status = answer
    finding = diagnosis.check_mlflow({"MLFLOW_TRACKING_URI": address(server)})
    assert finding.status == status
    assert word in finding.detail


def test_a_server_with_a_password(server: HTTPServer) -> None:
    server.password_required = True
    environment = {"MLFLOW_TRACKING_URI": address(server)}
    assert diagnosis.check_mlflow(environment).status == "fail"
    assert diagnosis.check_mlflow(environment | {"MLFLOW_TRACKING_USERNAME": "ann"}).status == "ok"
    assert diagnosis.check_mlflow(environment | {"MLFLOW_TRACKING_TOKEN": "t"}).status == "ok"


def test_no_server_and_no_password_shown() -> None:
    finding = diagnosis.check_mlflow({"MLFLOW_TRACKING_URI": "http://ann:hush@127.0.0.1:1"})
    assert finding.status == "fail"
    assert finding.detail.startswith("http://…@127.0.0.1:1 is unreachable: ")
    assert "hush" not in f"{finding}"


def test_ray_auth(tmp_path: Path) -> None:
    def status(**environment: str) -> str:
        return diagnosis.check_ray_auth(environment, tmp_path).status

    assert status() == "ok"
    assert status(RAY_AUTH_TOKEN="t") == "ok"
    assert status(RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="t") == "warn"
    assert status(RAY_ADDRESS="ray://head:10001") == "warn"
    assert status(RAY_AUTH_TOKEN_PATH=str(tmp_path / "absent")) == "fail"
    token = tmp_path / ".ray/auth_token"
    token.parent.mkdir()
    token.write_text("t")
    token.chmod(0o644)
    assert status() == "warn"
    token.chmod(0o600)
    assert status(RAY_ADDRESS="ray://head:10001") == "ok"
