"""Endpoints on a real Ray Serve."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from endpoints import b64, make_served_model, refused
from tiny_jobs import write_audio, write_image

from rayfuse.cluster import local
from rayfuse.cluster.local import LocalCluster
from rayfuse.errors import ResourceError
from rayfuse.model.predictor import Predictor
from rayfuse.serve import deploy
from rayfuse.serve.applications import Endpoint
from rayfuse.serve.dashboard import Dashboard
from rayfuse.spec.load import check
from rayfuse.spec.service import Service

Bring = Callable[..., Endpoint]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_served_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def dashboard(ray_cluster: LocalCluster) -> Iterator[Dashboard]:
    dashboard = Dashboard(ray_cluster.dashboard, ray_cluster.token)
    yield dashboard
    dashboard.shut_serve_down()


@pytest.fixture(scope="module")
def port() -> int:
    return local.free_ports(1)[0]


@pytest.fixture(scope="module")
def bring(dashboard: Dashboard, folder: Path, port: int) -> Bring:
    """Deploy the service `tiny`, with other options or another model folder."""

    def up(model: Path = folder, version: int = 1, **options: Any) -> Endpoint:
        content = {"kind": "service", "name": "tiny", "model": "/m", "port": port, **options}
        service = check(content, Service, "test.yaml")
        return deploy.deploy(service, model, {"name": "tiny", "version": version}, dashboard)

    return up


@pytest.fixture
def endpoint(bring: Bring) -> Endpoint:
    """The service as its spec's defaults have it; changes of limits by other tests are taken back."""
    return bring()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {"image": write_image(folder / "a.png"), "audio": write_audio(folder / "a.wav")}


@pytest.fixture(scope="module")
def whole(files: dict[str, Path]) -> dict[str, Any]:
    return {**{name: b64(path.read_bytes()) for name, path in files.items()}, "text": "which colour is it?"}


def ask(endpoint: Endpoint, inputs: Any, **options: Any) -> httpx.Response:
    return httpx.post(endpoint.predict, json={"inputs": inputs}, trust_env=False, timeout=60, **options)


def replica(dashboard: Dashboard) -> str:
    found = dashboard.serving()["applications"]["tiny"]["deployments"]["Endpoint"]["replicas"]
    return str(found[0]["replica_id"])


def test_json_and_multipart_are_answered_as_the_model_answers(
    endpoint: Endpoint, folder: Path, files: dict[str, Path], whole: dict[str, Any]
) -> None:
    values = {name: path.read_bytes() for name, path in files.items()}
    [expected] = Predictor(folder).predict([{**values, "text": whole["text"]}])
    form = {name: (path.name, path.read_bytes()) for name, path in files.items()}
    by_form = httpx.post(endpoint.predict, data={"text": whole["text"]}, files=form, trust_env=False).json()
    by_json = ask(endpoint, whole).json()
    for answer in (by_form, by_json):
        assert answer["inputs_used"] == ["image", "text", "audio"]
        assert answer["model"] == {"name": "tiny", "version": 1}
        assert answer["outputs"]["answer"]["scores"] == pytest.approx(
            expected["outputs"]["answer"]["scores"], abs=1e-4
        )


def test_an_optional_input_may_be_left_out(endpoint: Endpoint, whole: dict[str, Any]) -> None:
    assert ask(endpoint, {**whole, "audio": None}).json()["inputs_used"] == ["image", "text"]


def test_requests_at_the_same_time_are_batched_and_get_their_own_answers(
    bring: Bring, folder: Path, files: dict[str, Path], whole: dict[str, Any]
) -> None:
    endpoint = bring(batching={"max_size": 16, "wait": "300ms"})
    texts = [f"question {i}" for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda text: ask(endpoint, {**whole, "text": text}), texts))
    rows = [int(response.headers["server-timing"].rpartition(" of ")[2].strip('"')) for response in responses]
    assert max(rows) > 4
    values = {name: path.read_bytes() for name, path in files.items()}
    expected = Predictor(folder).predict([{**values, "text": text} for text in texts])
    for response, one in zip(responses, expected, strict=True):
        assert response.json()["outputs"]["answer"]["scores"] == pytest.approx(
            one["outputs"]["answer"]["scores"], abs=1e-4
        )


def test_docs_and_health_lie_below_the_route(endpoint: Endpoint) -> None:
    def get(path: str) -> httpx.Response:
        return httpx.get(endpoint.url + path, trust_env=False)

    assert endpoint.url.endswith("/tiny")
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json() == {"ready": True}
    assert get("/openapi.json").json()["servers"][0]["url"] == "/tiny"
    assert "/tiny/docs/swagger-ui-bundle.js" in get("/docs").text
    assert len(get("/docs/swagger-ui-bundle.js").content) > 1_000_000
    refused(get("/nothing"), 404)


def test_what_is_wrong_with_a_request_is_told(endpoint: Endpoint, whole: dict[str, Any]) -> None:
    def post(content: Any, kind: str = "application/json") -> httpx.Response:
        headers = {"content-type": kind}
        return httpx.post(endpoint.predict, content=content, headers=headers, trust_env=False)

    refused(post(b"{"), 400, "not JSON")
    refused(ask(endpoint, {**whole, "imag": None}), 400, "did you mean image?")
    refused(post(b"{}", "text/html"), 415)
    refused(ask(endpoint, {"text": "hi"}), 422, "image: missing")
    refused(ask(endpoint, {**whole, "image": b64(b"a text")}), 422, "image:")
    refused(httpx.get(endpoint.predict, trust_env=False), 405)


def test_limits_change_without_a_new_replica(
    bring: Bring, dashboard: Dashboard, endpoint: Endpoint, whole: dict[str, Any]
) -> None:
    before = replica(dashboard)
    small = bring(limits={"body": 500})
    refused(ask(small, {**whole, "text": "x" * 1000}), 413, "500 bytes")

    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    headers = {"content-type": "application/json"}
    refused(httpx.post(small.predict, content=pieces(), headers=headers, trust_env=False), 413)
    assert replica(dashboard) == before


def test_more_than_may_wait_are_refused_and_told_when_to_come_back(
    bring: Bring, whole: dict[str, Any]
) -> None:
    endpoint = bring(limits={"queue": 1}, batching={"max_size": 1, "wait": 0})
    content = {"instances": [{"inputs": whole}] * 100}
    with ThreadPoolExecutor(16) as pool:
        responses = list(
            pool.map(
                lambda _: httpx.post(endpoint.predict, json=content, trust_env=False, timeout=60), range(16)
            )
        )
    assert {response.status_code for response in responses} == {200, 503}
    for response in responses:
        if response.status_code == 503:
            refused(response, 503, "1 requests are waiting")
            assert response.headers["retry-after"] == "1"


def test_an_answer_that_takes_too_long_is_given_up(bring: Bring, whole: dict[str, Any]) -> None:
    endpoint = bring(limits={"timeout": "100ms"}, batching={"max_size": 1, "wait": 0})
    content = {"instances": [{"inputs": whole}] * 1000}
    refused(httpx.post(endpoint.predict, json=content, trust_env=False, timeout=60), 504)


def test_a_new_version_takes_over_without_a_lost_request(bring: Bring, whole: dict[str, Any]) -> None:
    endpoint = bring()
    versions: list[Any] = []
    done = threading.Event()

    def keep_asking() -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            while not done.is_set():
                response = client.post(endpoint.predict, json={"inputs": whole})
                versions.append(response.json()["model"]["version"] if response.is_success else response.text)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        bring(version=2)
        time.sleep(0.5)
    finally:
        done.set()
        asking.join()
    assert set(versions) == {1, 2}
    assert versions == sorted(versions)


def test_a_model_that_does_not_load_says_why_and_leaves_the_old_one(
    bring: Bring, dashboard: Dashboard, endpoint: Endpoint, whole: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ResourceError, match=r"tiny does not come up: .*not a model folder"):
        bring(model=tmp_path, version=3)
    [found] = deploy.status(dashboard)
    assert (found.status, found.model["version"]) == ("RUNNING", 1)
    assert ask(endpoint, whole).json()["model"]["version"] == 1


def test_a_port_in_use_is_named_and_what_serves_goes_on(
    bring: Bring, endpoint: Endpoint, whole: dict[str, Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=rf"port: {port} .*--set port={port + 1}"):
            bring(port=port)
    assert ask(endpoint, whole).status_code == 200


def test_keys_open_it_to_others_and_are_shown_nowhere(
    bring: Bring, dashboard: Dashboard, whole: dict[str, Any]
) -> None:
    endpoint = bring(auth={"keys": "key-of-anna,key-of-ben"})
    refused(ask(endpoint, whole), 401)
    refused(ask(endpoint, whole, headers={"Authorization": "Bearer key-of-carl"}), 401)
    for key in ("key-of-anna", "key-of-ben"):
        assert ask(endpoint, whole, headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert "key-of" not in json.dumps(dashboard.serving())
    assert dashboard.serving()["http_options"]["host"] == "0.0.0.0"


def rayfuse(*arguments: str, environment: dict[str, str], code: int = 0) -> Any:
    """Run the command line with --json, and return its answer."""
    command = [
        sys.executable,
        "-c",
        "import sys; from rayfuse.cli import main; sys.exit(main())",
        *arguments,
        "--json",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_up_predict_status_down(
    outside_ray: dict[str, str], folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """As people do it: no cluster at first, and no process left at the end."""
    environment = {**outside_ray, "XDG_STATE_HOME": str(tmp_path / "state")}
    state = local.default_state(environment)
    [port] = local.free_ports(1)
    spec = tmp_path / "tiny.yaml"
    spec.write_text(f"kind: service\nname: by-hand\nmodel: {folder}\nport: {port}\n")
    values = [f"{name}=@{path}" for name, path in files.items()] + ["text=which colour is it?"]
    try:
        assert rayfuse("serve", "status", environment=environment) == {"endpoints": []}
        up = rayfuse("serve", "up", str(spec), environment=environment)
        cluster = local.find(state)
        assert cluster is not None
        [found] = rayfuse("serve", "status", environment=environment)["endpoints"]
        assert (found["name"], found["status"], found["replicas"]) == ("by-hand", "RUNNING", 1)
        over_http = rayfuse("predict", up["predict"], *values, environment=environment)
        from_folder = rayfuse("predict", str(folder), *values, environment=environment)
        assert over_http["outputs"]["answer"]["scores"] == pytest.approx(
            from_folder["outputs"]["answer"]["scores"], abs=1e-4
        )
        assert over_http["model"] == from_folder["model"] == {"name": "tiny", "version": None}
        rayfuse("predict", up["url"], "text=hi", environment=environment, code=2)
        assert rayfuse("serve", "down", environment=environment) == {
            "down": "by-hand",
            "cluster_stopped": True,
        }
        assert local.processes(cluster) == []
        assert not Path(cluster.folder).exists()
        rayfuse("predict", up["url"], "text=hi", environment=environment, code=4)
    finally:
        local.stop(state)
    assert not any(os.scandir(state)) or {entry.name for entry in os.scandir(state)} == {"cluster.lock"}
