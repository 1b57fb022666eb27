"""Endpoints on a real Ray Serve."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import costly_inputs
import httpx
import listening
import pytest
import yaml
from endpoints import b64, make_champion, make_served_model, problem_of
from mlflow_server import Server
from tiny_jobs import write_audio, write_image
from waiting import wait_for

from rayfuse.cli import main
from rayfuse.cluster import local
from rayfuse.cluster.local import LocalCluster
from rayfuse.errors import ResourceError, SpecError, UnavailableError
from rayfuse.model.predictor import Predictor
from rayfuse.ray_http import FAILED_SERVE_STATUSES
from rayfuse.registry.download import ModelSource
from rayfuse.serving import deploy, serve_config
from rayfuse.serving.dashboard import Dashboard
from rayfuse.serving.serve_config import EndpointStatus
from rayfuse.spec.load import validate_spec
from rayfuse.spec.service import Service

Bring = Callable[..., EndpointStatus]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_served_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def dashboard(ray_cluster: LocalCluster) -> Iterator[Dashboard]:
    dashboard = Dashboard(ray_cluster.dashboard_url, ray_cluster.token)
    yield dashboard
    dashboard.shutdown_serve()


@pytest.fixture(scope="module")
def port() -> int:
    return local.free_ports(1)[0]


@pytest.fixture(scope="module")
def bring(dashboard: Dashboard, folder: Path, port: int) -> Bring:
    """Deploy the service `tiny`, with other options or another model folder."""

    def up(model: Path = folder, version: int = 1, **options: Any) -> EndpointStatus:
        content = {"kind": "service", "name": "tiny", "model": "/m", "port": port, **options}
        service = validate_spec(content, Service, "test.yaml")
        return deploy.deploy(service, ModelSource(str(model), name="tiny", version=version), dashboard)

    return up


@pytest.fixture
def endpoint(bring: Bring) -> EndpointStatus:
    """Return the service with the defaults of its spec; changes of limits by other tests are reverted."""
    return bring()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {"image": write_image(folder / "a.png"), "audio": write_audio(folder / "a.wav")}


@pytest.fixture(scope="module")
def whole(files: dict[str, Path]) -> dict[str, Any]:
    return {**{name: b64(path.read_bytes()) for name, path in files.items()}, "text": "which colour is it?"}


def predict(endpoint: EndpointStatus, inputs: Any, **options: Any) -> httpx.Response:
    return httpx.post(endpoint.predict_url, json={"inputs": inputs}, trust_env=False, timeout=300, **options)


def replica(dashboard: Dashboard) -> str:
    found = dashboard.serve_details()["applications"]["tiny"]["deployments"]["Endpoint"]["replicas"]
    return str(found[0]["replica_id"])


def test_json_and_multipart_responses_equal_the_models_predictions(
    endpoint: EndpointStatus, folder: Path, files: dict[str, Path], whole: dict[str, Any]
) -> None:
    values = {name: path.read_bytes() for name, path in files.items()}
    [expected] = Predictor(folder).predict([{**values, "text": whole["text"]}])
    form = {name: (path.name, path.read_bytes()) for name, path in files.items()}
    by_form = httpx.post(
        endpoint.predict_url, data={"text": whole["text"]}, files=form, trust_env=False
    ).json()
    by_json = predict(endpoint, whole).json()
    for answer in (by_form, by_json):
        assert answer["inputs_used"] == ["image", "text", "audio"]
        assert answer["model"] == {"name": "tiny", "version": 1}
        assert answer["outputs"]["answer"]["scores"] == pytest.approx(
            expected["outputs"]["answer"]["scores"], abs=1e-4
        )


def test_an_optional_input_may_be_left_out(endpoint: EndpointStatus, whole: dict[str, Any]) -> None:
    assert predict(endpoint, {**whole, "audio": None}).json()["inputs_used"] == ["image", "text"]


def test_concurrent_requests_are_batched(
    bring: Bring, folder: Path, files: dict[str, Path], whole: dict[str, Any]
) -> None:
    endpoint = bring(batching={"max_batch_size": 16, "batch_wait_timeout": "300ms"})
    texts = [f"question {i}" for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda text: predict(endpoint, {**whole, "text": text}), texts))
    rows = [int(response.headers["server-timing"].rpartition(" of ")[2].strip('"')) for response in responses]
    assert max(rows) > 4
    values = {name: path.read_bytes() for name, path in files.items()}
    expected = Predictor(folder).predict([{**values, "text": text} for text in texts])
    for response, one in zip(responses, expected, strict=True):
        assert response.json()["outputs"]["answer"]["scores"] == pytest.approx(
            one["outputs"]["answer"]["scores"], abs=1e-4
        )


def test_docs_and_health_are_below_the_route(endpoint: EndpointStatus) -> None:
    def get(path: str) -> httpx.Response:
        return httpx.get(endpoint.url + path, trust_env=False)

    assert endpoint.url.endswith("/tiny")
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json() == {"ready": True}
    assert get("/openapi.json").json()["servers"][0]["url"] == "/tiny"
    assert "/tiny/docs/swagger-ui-bundle.js" in get("/docs").text
    assert len(get("/docs/swagger-ui-bundle.js").content) > 1_000_000
    assert "/tiny/try/try.js" in get("/").text
    assert get("/try/try.js").headers["content-type"].startswith("text/javascript")
    problem_of(get("/nothing"), 404)


def test_invalid_requests_get_a_problem(endpoint: EndpointStatus, whole: dict[str, Any]) -> None:
    def post(content: Any, kind: str = "application/json") -> httpx.Response:
        headers = {"content-type": kind}
        return httpx.post(endpoint.predict_url, content=content, headers=headers, trust_env=False)

    problem_of(post(b"{"), 400, "not JSON")
    problem_of(predict(endpoint, {**whole, "imag": None}), 400, "did you mean image?")
    problem_of(post(b"{}", "text/html"), 415)
    problem_of(predict(endpoint, {"text": "hi"}), 422, "image: missing")
    problem_of(predict(endpoint, {**whole, "image": b64(b"a text")}), 422, "image:")
    problem_of(httpx.get(endpoint.predict_url, trust_env=False), 405)


def test_limits_change_without_a_new_replica(
    bring: Bring, dashboard: Dashboard, endpoint: EndpointStatus, whole: dict[str, Any]
) -> None:
    before = replica(dashboard)
    small = bring(limits={"max_body_size": 500})
    problem_of(predict(small, {**whole, "text": "x" * 1000}), 413, "500 bytes")

    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    headers = {"content-type": "application/json"}
    problem_of(httpx.post(small.predict_url, content=pieces(), headers=headers, trust_env=False), 413)
    assert replica(dashboard) == before


def test_costly_files_are_rejected_and_their_memory_is_freed(
    bring: Bring, dashboard: Dashboard, endpoint: EndpointStatus, whole: dict[str, Any]
) -> None:
    assert predict(endpoint, whole).status_code == 200
    before, name = memory(dashboard), replica(dashboard)
    peaks = [before]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peaks.append(memory(dashboard))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        for kind, make in (
            ("image", costly_inputs.png_line),
            ("image", costly_inputs.webp),
            ("image", costly_inputs.png_16_bit),
            ("audio", costly_inputs.mp4_samples),
        ):
            problem_of(predict(endpoint, {**whole, kind: b64(make())}), 422, f"{kind}: ")
        large = b64(costly_inputs.png(9400, 9400, 1, 3))
        with ThreadPoolExecutor(4) as pool:
            responses = list(pool.map(lambda _: predict(endpoint, {**whole, "image": large}), range(4)))
        assert {response.status_code for response in responses} == {200}
    finally:
        done.set()
        watching.join()
    assert max(peaks) < before + 1e9
    wait_for(lambda: memory(dashboard) < 1.1 * before)
    short = bring(limits={"max_decode_time": 0.2})
    problem_of(predict(short, {**whole, "image": large}), 422, "more than 0.2 s of CPU time to decode")
    assert predict(short, whole).status_code == 200
    assert replica(dashboard) == name


def memory(dashboard: Dashboard) -> float:
    """Return the bytes that the replica and its processes do not share with others."""
    details = dashboard.serve_details()["applications"]["tiny"]["deployments"]["Endpoint"]["replicas"]
    pending, total = [int(details[0]["pid"])], 0
    while pending:
        process = Path(f"/proc/{pending.pop()}")
        with contextlib.suppress(OSError):  # it has ended
            pending += [
                int(pid) for tasks in process.glob("task/*/children") for pid in tasks.read_text().split()
            ]
            lines = (process / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))
    return total


def test_requests_above_the_queue_limit_get_retry_after(bring: Bring, whole: dict[str, Any]) -> None:
    endpoint = bring(
        limits={"max_queued_requests": 1}, batching={"max_batch_size": 1, "batch_wait_timeout": 0}
    )
    content = {"instances": [{"inputs": whole}] * 100}
    with ThreadPoolExecutor(16) as pool:
        responses = list(
            pool.map(
                lambda _: httpx.post(endpoint.predict_url, json=content, trust_env=False, timeout=300),
                range(16),
            )
        )
    assert {response.status_code for response in responses} == {200, 503}
    for response in responses:
        if response.status_code == 503:
            problem_of(response, 503, "1 requests are queued already")
            assert response.headers["retry-after"] == "1"


def test_requests_time_out(bring: Bring, whole: dict[str, Any]) -> None:
    endpoint = bring(
        limits={"request_timeout": "100ms"}, batching={"max_batch_size": 1, "batch_wait_timeout": 0}
    )
    content = {"instances": [{"inputs": whole}] * 1000}
    problem_of(httpx.post(endpoint.predict_url, json=content, trust_env=False, timeout=300), 504)


def test_a_new_version_loses_no_request(
    bring: Bring, folder: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    endpoint = bring()
    newer = shutil.copytree(folder, tmp_path / "newer")
    versions: list[Any] = []
    done = threading.Event()

    def keep_asking() -> None:
        with httpx.Client(trust_env=False, timeout=300) as client:
            while not done.is_set():
                response = client.post(endpoint.predict_url, json={"inputs": whole})
                versions.append(response.json()["model"]["version"] if response.is_success else response.text)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        bring(newer, version=2)
        time.sleep(0.5)
    finally:
        done.set()
        asking.join()
    assert set(versions) == {1, 2}
    assert versions == sorted(versions)


def test_a_failed_deployment_has_its_reason_and_is_rolled_back(
    bring: Bring, dashboard: Dashboard, endpoint: EndpointStatus, whole: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ResourceError, match=r"tiny: deployment failed: .*not a model folder"):
        bring(model=tmp_path, version=3)
    [found] = deploy.list_endpoints(dashboard)
    assert (found.status, found.model["version"]) == ("RUNNING", 1)
    assert predict(endpoint, whole).json()["model"]["version"] == 1


def test_a_port_in_use_is_reported_and_other_endpoints_continue(
    bring: Bring, endpoint: EndpointStatus, whole: dict[str, Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=rf"port: {port} .*--set port={port + 1}"):
            bring(port=port)
    assert predict(endpoint, whole).status_code == 200


def test_the_routes_of_a_cluster_are_for_this_machine(endpoint: EndpointStatus, port: int) -> None:
    """The proxy of Serve is configured by Rayfuse."""
    address = f"http://127.0.0.1:{port}/-"
    assert httpx.get(f"{address}/routes", trust_env=False).json() == {"/tiny": "tiny"}
    hostile = {"Host": "evil.example.com"}
    problem_of(httpx.get(f"{address}/routes", headers=hostile, trust_env=False), 421, "evil.example.com")
    assert httpx.get(f"{address}/healthz", headers=hostile, trust_env=False).status_code == 200


def test_an_endpoint_without_keys_listens_on_loopback_only(
    bring: Bring, dashboard: Dashboard, ray_cluster: LocalCluster
) -> None:
    dashboard.shutdown_serve()
    bring()
    found = listening.addresses(local.processes(ray_cluster))
    assert any("ServeReplica" in name for name, _ in found)
    assert not listening.beyond_loopback(found)


def test_a_port_is_free_again_at_once(bring: Bring, dashboard: Dashboard, whole: dict[str, Any]) -> None:
    """A connection that the server closed stays in TIME_WAIT for a minute."""
    endpoint = bring()
    for _ in range(3):
        assert predict(endpoint, whole, headers={"Connection": "close"}).status_code == 200
    deploy.delete("tiny", dashboard)
    assert predict(bring(), whole).status_code == 200


def test_a_killed_proxy_is_replaced_at_once(
    endpoint: EndpointStatus, ray_cluster: LocalCluster, whole: dict[str, Any]
) -> None:
    assert predict(endpoint, whole, headers={"Connection": "close"}).status_code == 200
    [proxy] = [one for one in local.processes(ray_cluster) if "ProxyActor" in " ".join(one.cmdline())]
    proxy.kill()
    wait_for(lambda: is_answering(endpoint, whole))


def is_answering(endpoint: EndpointStatus, inputs: Any) -> bool:
    try:
        return predict(endpoint, inputs).status_code == 200
    except httpx.TransportError:
        return False


def test_a_failed_move_to_another_address_is_rolled_back(
    bring: Bring, dashboard: Dashboard, whole: dict[str, Any], tmp_path: Path
) -> None:
    """Serve must restart to listen on all interfaces."""
    dashboard.shutdown_serve()
    endpoint = bring()
    with pytest.raises(ResourceError, match=r"tiny: deployment failed: .*not a model folder"):
        bring(model=tmp_path, version=3, auth={"keys": "a-key-of-16-characters"})
    assert dashboard.serve_details()["http_options"]["host"] == "127.0.0.1"
    wait_for(lambda: is_answering(endpoint, whole))
    assert predict(endpoint, whole).json()["model"]["version"] == 1


def test_keys_allow_remote_clients_and_are_not_exposed(
    bring: Bring, dashboard: Dashboard, whole: dict[str, Any]
) -> None:
    endpoint = bring(auth={"keys": "secret-key-of-anna,secret-key-of-ben"})
    problem_of(predict(endpoint, whole), 401)
    problem_of(predict(endpoint, whole, headers={"Authorization": "Bearer secret-key-of-carl"}), 401)
    for key in ("secret-key-of-anna", "secret-key-of-ben"):
        assert predict(endpoint, whole, headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert "key-of" not in json.dumps(dashboard.serve_details())
    assert dashboard.serve_details()["http_options"]["host"] == "0.0.0.0"


def test_a_remote_cluster_downloads_the_resolved_version(
    dashboard: Dashboard,
    folder: Path,
    whole: dict[str, Any],
    port: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    make_champion(tracking, folder, "pinned")
    spec = tmp_path / "pinned.yaml"
    content = {
        "kind": "service",
        "name": "pinned",
        "model": "models:/pinned@champion",
        "tracking_uri": tracking,
    }
    spec.write_text(yaml.safe_dump({**content, "port": port}))
    assert main(["serve", "up", str(spec), "--json"]) == 0
    up = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert up["model"] == {"name": "pinned", "version": 1}
    arguments = dashboard.serve_details()["applications"]["pinned"]["deployed_app_config"]["args"]
    assert arguments.pop("generation")["max_num_seqs"] == 8
    assert arguments == {"model": "models:/pinned/1", "tracking_uri": tracking, "num_threads": 1}
    [found] = [endpoint for endpoint in deploy.list_endpoints(dashboard) if endpoint.name == "pinned"]
    assert predict(found, whole).json()["model"] == {"name": "pinned", "version": 1}
    deploy.delete("pinned", dashboard)


@pytest.fixture(scope="module")
def registry(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return an MLflow server whose model `promoted` has a champion."""
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    make_champion(server.uri, folder, "promoted")
    yield server.uri
    server.kill()


def write_service(folder: Path, **options: Any) -> Path:
    content = {"kind": "service", "name": "on-kuberay", "model": "models:/promoted@champion", **options}
    path = folder / "service.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def put(dashboard: Dashboard, spec: Path, port: int, environment: dict[str, str]) -> dict[str, Any]:
    """Have Serve run what a RayService specifies, and return the application when it has come up or failed.

    `environment` stands for that of the pods.
    """
    application = {
        "name": "on-kuberay",
        "route_prefix": "/on-kuberay",
        "import_path": "rayfuse.serving.endpoint:from_spec",
        "args": {"spec": str(spec), "digest": hashlib.sha256(spec.read_bytes()).hexdigest()},
        "runtime_env": {"env_vars": environment},
    }
    http = {"host": "0.0.0.0", "port": port}
    dashboard.apply({"http_options": http, "applications": [application]})
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        found: dict[str, Any] = dashboard.serve_details()["applications"]["on-kuberay"]
        if found["status"] in ("RUNNING", *FAILED_SERVE_STATUSES):
            return found
        time.sleep(0.5)
    raise AssertionError(f"not up in time: {found}")


def test_a_cluster_reads_the_spec_and_fetches_the_model_itself(
    dashboard: Dashboard,
    registry: str,
    folder: Path,
    files: dict[str, Path],
    whole: dict[str, Any],
    tmp_path: Path,
) -> None:
    """As in a RayService of KubeRay."""
    dashboard.shutdown_serve()
    [port] = local.free_ports(1)
    keys = "${RAYFUSE_API_KEYS:-secret-key-of-anna}"
    spec = write_service(
        tmp_path,
        auth={"keys": keys},
        limits={"max_body_size": 200_000},
        replicas={"min": 1, "max": 2, "num_cpus": 0.5},
    )
    environment = {"MLFLOW_TRACKING_URI": registry, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    found = put(dashboard, spec, port, environment)
    assert found["status"] == "RUNNING", found

    [endpoint] = deploy.list_endpoints(dashboard)
    assert (endpoint.name, endpoint.num_api_keys, endpoint.replicas) == ("on-kuberay", 1, 1)
    assert endpoint.model == {"name": "promoted", "version": 1}
    problem_of(predict(endpoint, whole), 401)
    answer = predict(endpoint, whole, headers={"Authorization": "Bearer secret-key-of-anna"}).json()
    values = {name: path.read_bytes() for name, path in files.items()}
    [expected] = Predictor(folder).predict([{**values, "text": whole["text"]}])
    assert answer["model"] == {"name": "promoted", "version": 1}
    assert answer["outputs"]["answer"]["scores"] == pytest.approx(
        expected["outputs"]["answer"]["scores"], abs=1e-4
    )
    large = {**whole, "text": "x" * 200_000}
    problem_of(predict(endpoint, large, headers={"Authorization": "Bearer secret-key-of-anna"}), 413)

    assert "key-of" not in json.dumps(dashboard.serve_details())
    [cached] = (tmp_path / "cache" / "rayfuse" / "models").iterdir()
    assert cached.name.startswith("promoted-1-")
    used = found["deployments"]["Endpoint"]["deployment_config"]
    [same] = serve_config.build_application(
        validate_spec(
            {**yaml.safe_load(spec.read_text()), "auth": {"keys": "secret-key-of-anna"}}, Service, "x"
        ),
        ModelSource("models:/promoted/1", registry, "promoted", 1),
    )["deployments"]
    assert {name: used[name] for name in same if name not in ("autoscaling_config", "ray_actor_options")} == {
        name: value for name, value in same.items() if name not in ("autoscaling_config", "ray_actor_options")
    }
    assert used["autoscaling_config"].items() >= same["autoscaling_config"].items()
    assert used["ray_actor_options"].items() >= same["ray_actor_options"].items()


@pytest.mark.parametrize(
    ("options", "expected_message"),
    [
        ({}, r"auth\.keys: missing, .*RAYFUSE_API_KEYS in a Secret listed under `secrets\.env`"),
        (
            {"auth": {"keys": "a-key-that-is-secret"}, "model": "models:/promoted@unknown"},
            "no version of promoted has the alias",
        ),
        ({"auth": {"keys": "a-key-that-is-secret"}, "prot": 1}, "prot: unknown key; did you mean port"),
    ],
)
def test_a_service_that_cannot_run_has_its_reason(
    registry: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    expected_message: str,
) -> None:
    from rayfuse.serving.endpoint import SpecArgs, from_spec

    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    with pytest.raises(SpecError, match=expected_message):
        from_spec(SpecArgs(spec=str(write_service(tmp_path, **options))))


def test_a_cluster_waits_for_an_mlflow_that_is_still_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from rayfuse.serving import endpoint

    server = Server(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    spec = endpoint.SpecArgs(spec=str(write_service(tmp_path, auth={"keys": "a-key-that-is-secret"})))
    monkeypatch.setattr(endpoint, "_RETRY_TIMEOUT_SECONDS", 0.0)
    with pytest.raises(UnavailableError, match="connection refused"):
        endpoint.from_spec(spec)
    monkeypatch.setattr(endpoint, "_RETRY_TIMEOUT_SECONDS", 600.0)
    starting = threading.Thread(target=server.start)
    starting.start()
    try:
        with (
            caplog.at_level("WARNING", "rayfuse"),
            pytest.raises(SpecError, match="registered model .* not found"),
        ):
            endpoint.from_spec(spec)
        assert "; retrying" in caplog.text
    finally:
        starting.join()
        server.kill()


def test_errors_of_a_service_are_in_serves_status(
    dashboard: Dashboard, registry: str, tmp_path: Path, port: int
) -> None:
    found = put(dashboard, write_service(tmp_path), port, {})
    assert found["status"] == "DEPLOY_FAILED"
    assert serve_config.failure_reason(found).startswith(f"{tmp_path}/service.yaml: auth.keys: missing")


def rayfuse(*arguments: str, environment: dict[str, str], code: int = 0) -> Any:
    """Run the command line with --json, and return its result."""
    command = [
        sys.executable,
        "-c",
        "import sys; from rayfuse.cli import main; sys.exit(main())",
        *arguments,
        "--json",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_up_predict_status_down(
    outside_ray: dict[str, str], folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """Starts without a cluster, and leaves no process."""
    environment = {**outside_ray, "XDG_STATE_HOME": str(tmp_path / "state")}
    state = local.default_state_dir(environment)
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
        assert not Path(cluster.temp_dir).exists()
        rayfuse("predict", up["url"], "text=hi", environment=environment, code=4)
    finally:
        local.stop(state)
    assert not any(os.scandir(state)) or {entry.name for entry in os.scandir(state)} == {"cluster.lock"}


def run_script(script: str, *arguments: object, environment: dict[str, str]) -> dict[str, Any]:
    """Run a Python script, as a notebook would, and return the JSON object in its last line.

    HOME must not be the user's: `ray.init` writes a token into it.
    """
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


ON_A_LOCAL_CLUSTER = """
import json, pathlib, sys
from rayfuse.api.serving import list_endpoints, serve

folder, port, image = sys.argv[1:]
row = {"image": pathlib.Path(image).read_bytes(), "text": "which colour is it?"}
with serve({"name": "by-script", "model": folder, "port": int(port)}) as endpoint:
    found = [(each.name, each.url) for each in list_endpoints()]
    answers = endpoint.predict([row, row])
endpoint.stop()
print(json.dumps({"found": found, "url": endpoint.url, "answers": answers, "left": list_endpoints()}))
"""


def test_serving_in_python_starts_and_stops_a_local_cluster(
    outside_ray: dict[str, str], folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    environment = {**outside_ray, "XDG_STATE_HOME": str(tmp_path / "state")}
    [port] = local.free_ports(1)
    try:
        result = run_script(ON_A_LOCAL_CLUSTER, folder, port, files["image"], environment=environment)
        assert local.find(local.default_state_dir(environment)) is None
    finally:
        local.stop(local.default_state_dir(environment))
    assert result["url"] == f"http://127.0.0.1:{port}/by-script"
    assert result["found"] == [["by-script", result["url"]]]
    assert result["left"] == []
    expected = Predictor(folder).predict(
        [{"image": files["image"].read_bytes(), "text": "which colour is it?"}]
    )
    for answer in result["answers"]:
        assert answer["outputs"]["answer"]["scores"] == pytest.approx(
            expected[0]["outputs"]["answer"]["scores"], abs=1e-4
        )


ON_THE_CALLERS_RAY = """
import _thread, json, logging, pathlib, sys, time

import httpx, ray
from ray import serve as ray_serve

from rayfuse.api.serving import list_endpoints, serve

folder, port, image = sys.argv[1:]
row = {"image": pathlib.Path(image).read_bytes(), "text": "which colour is it?"}
context = ray.init(num_cpus=3, include_dashboard=True, dashboard_port=0, log_to_driver=False)

@ray_serve.deployment(num_replicas=1)
class Theirs:
    def __call__(self):
        return "theirs"

class InterruptOnce(logging.Handler):
    done = False

    def emit(self, record):
        if not self.done and "replicas" in record.getMessage():
            self.done = True
            _thread.interrupt_main()

ray_serve.start(http_options={"port": int(port)})
ray_serve.run(Theirs.bind(), name="theirs", route_prefix="/theirs")
endpoint = serve({"name": "ours", "model": folder, "port": int(port)})
result = {"dashboards": [endpoint.dashboard_url, f"http://{context.dashboard_url}"]}

log = logging.getLogger("rayfuse")
log.setLevel(logging.INFO)
log.addHandler(InterruptOnce())
try:
    serve({"name": "ours", "model": folder, "port": int(port), "replicas": {"num_cpus": 0.5}})
except KeyboardInterrupt:
    result["interrupted"] = True
deadline = time.monotonic() + 300
while endpoint.status().status != "RUNNING" and time.monotonic() < deadline:  # the replica is being replaced
    time.sleep(0.2)
endpoint.predict(row)
result["found"] = [(each.name, each.status().status) for each in list_endpoints()]

endpoint.stop()
result["left"] = [each.name for each in list_endpoints()]
result["theirs"] = httpx.get(f"http://127.0.0.1:{port}/theirs", trust_env=False).text
result["is_initialized"] = ray.is_initialized()
print(json.dumps(result))
"""


def test_serving_in_python_uses_the_callers_ray_and_leaves_it_running(
    outside_ray: dict[str, str], folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    environment = {**outside_ray, "XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path)}
    [port] = local.free_ports(1)
    result = run_script(ON_THE_CALLERS_RAY, folder, port, files["image"], environment=environment)
    used, callers = result.pop("dashboards")
    assert used == callers
    assert result == {
        "interrupted": True,
        "found": [["ours", "RUNNING"]],
        "left": [],
        "theirs": "theirs",
        "is_initialized": True,
    }
    assert not (tmp_path / "state").exists()
