"""Client of Ray's Jobs API with recorded responses."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest

from rayfuse.cluster.jobs import JobInfo
from rayfuse.cluster.rayjobs import RayJobClient, submit, zip_files
from rayfuse.errors import SpecError, UnavailableError
from rayfuse.ray_http import RayHttp

FAILED = {
    "type": "SUBMISSION",
    "submission_id": "j",
    "entrypoint": "/opt/venv/bin/rayfuse tune /etc/rayfuse/spec/sweep.yaml",
    "status": "FAILED",
    "message": "Job entrypoint command failed with exit code 1, last available logs (truncated):\nTraceback",
    "metadata": None,
    "start_time": 1_700_000_000_500,
    "end_time": None,
    "driver_exit_code": 1,
}


class RecordedRay(RayHttp):
    """Dashboard that returns one recorded job."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__("http://head:8265/", None)
        self.job = job

    def request(self, method: str, path: str, *_: Any, **__: Any) -> httpx.Response:
        if path == "/nodes?view=summary":
            return httpx.Response(200, json={"data": {"summary": self.job["nodes"]}})
        assert (method, path) == ("GET", f"/api/jobs/{self.job['submission_id']}")
        return httpx.Response(200, json=self.job)


def read(**changes: Any) -> JobInfo:
    return RayJobClient(RecordedRay({**FAILED, **changes})).get("j")


def test_a_failed_job_is_explained_in_a_line() -> None:
    job = read()
    assert job.message == "Job entrypoint command failed with exit code 1"
    assert job.started == datetime(2023, 11, 14, 22, 13, 20, 500_000, UTC)
    assert job.ended is None
    assert job.dashboard_url == "http://head:8265"


@pytest.mark.parametrize(
    ("entrypoint", "metadata", "kind"),
    [
        ("rayfuse train job.yaml", None, "job"),
        ("/venv/bin/rayfuse tune sweep.yaml", {}, "sweep"),
        ("rayfuse train job.yaml", {"rayfuse/kind": "sweep"}, "sweep"),
        ("rayfuse doctor", {"team": "a"}, ""),
        ("rayfuse", None, ""),
        ("python train.py", None, ""),
    ],
)
def test_the_kind_is_in_the_metadata_or_the_entrypoint(entrypoint: str, metadata: Any, kind: str) -> None:
    assert read(entrypoint=entrypoint, metadata=metadata).kind == kind


@pytest.mark.parametrize(("code", "shown"), [(0, 0), (3, 3), (-15, 143), (None, None)])
def test_exit_codes_are_those_of_a_shell(code: int | None, shown: int | None) -> None:
    assert read(driver_exit_code=code).exit_code == shown


def test_only_pending_and_failed_jobs_have_a_message() -> None:
    assert read(status="PENDING", message="waiting for its environment").message
    assert not read(status="SUCCEEDED", message="Job finished successfully.").message


def test_the_same_files_are_the_same_package() -> None:
    assert zip_files({"a": "1", "b/c": "2"}) == zip_files({"b/c": "2", "a": "1"})


@pytest.fixture
def another_server() -> Iterator[str]:
    """HTTP server other than Ray."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_another_server_is_not_ray(another_server: str) -> None:
    with pytest.raises(UnavailableError, match="is not the dashboard of a Ray cluster"):
        RayJobClient.connect(another_server).list()
    with pytest.raises(UnavailableError, match="is not the dashboard of a Ray cluster"):
        submit(another_server, "j", "job", {}, "rayfuse train job.yaml", {})


@pytest.mark.parametrize(
    ("address", "found"),
    [("ray://head:10001", "the address of Ray Client"), ("ftp://head", "an address with ftp://")],
)
def test_addresses_of_other_protocols(address: str, found: str) -> None:
    with pytest.raises(
        SpecError, match=f"{address}: {found}, not that of a Ray dashboard; write http://HOST:8265"
    ):
        RayJobClient.connect(address)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:1", "http://[", "127.0.0.1:99999"])
def test_unreachable_dashboard(address: str) -> None:
    with pytest.raises(UnavailableError, match="127.0.0.1|not the URL"):
        RayJobClient.connect(address).list()


@pytest.mark.parametrize(
    ("nodes", "largest"),
    [([], None), ([{"ip": "starts"}], None), ([{"mem": [4, 1, 75.0, 3]}, {"mem": [8, 8, 0, 0]}, {}], 8)],
)
def test_memory_of_the_largest_node(nodes: list[Any], largest: int | None) -> None:
    assert RayJobClient(RecordedRay({**FAILED, "nodes": nodes})).largest_node_memory() == largest
