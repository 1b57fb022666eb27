"""Endpoints by the Python API, on a stand-in for Ray's dashboard and a real model behind HTTP."""

import _thread
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from endpoints import make_served_model, serve_in_thread
from serve_dashboard import ServeDashboard, serve_dashboard
from tiny_jobs import write_image

from rayfuse.api.serving import StoppedEndpoint, list_endpoints, serve, stop_endpoint
from rayfuse.errors import InvalidInputError, ResourceError, SpecError
from rayfuse.model.predictor import Predictor
from rayfuse.spec.job import Job
from rayfuse.spec.service import Service


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_served_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model_folder: Path) -> Iterator[str]:
    """Return the URL of the endpoint `tiny` on a real HTTP server; it is also below /a, /b and /c."""
    with serve_in_thread(Predictor(model_folder), "/tiny", "/a", "/b", "/c") as url:
        yield url


@pytest.fixture
def dashboard(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ServeDashboard]:
    """Return the dashboard of RAY_ADDRESS, whose Serve listens where the tiny model is served."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with serve_dashboard(port_of(server)) as dashboard:
        monkeypatch.setenv("RAY_ADDRESS", dashboard.url)
        yield dashboard


@pytest.fixture
def service(server: str, model_folder: Path) -> Service:
    return Service(name="tiny", model=str(model_folder), port=port_of(server))


@pytest.fixture
def row(tmp_path: Path) -> dict[str, Any]:
    return {"image": write_image(tmp_path / "red.png").read_bytes(), "text": "which colour is it?"}


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port
    return port


def test_an_endpoint_predicts_and_is_gone_when_it_is_stopped(
    dashboard: ServeDashboard, service: Service, server: str, row: dict[str, Any]
) -> None:
    endpoint = serve(service)
    assert (endpoint.name, endpoint.url, endpoint.dashboard_url) == ("tiny", server, dashboard.url)
    assert (endpoint.predict_url, endpoint.docs_url) == (f"{server}/predict", f"{server}/docs")
    one = endpoint.predict(row)
    assert one["inputs_used"] == ["image", "text"]
    both = endpoint.predict([row, {**row, "text": "and this one?"}])
    assert both[0]["outputs"]["answer"]["label"] == one["outputs"]["answer"]["label"]
    assert len(both) == 2
    assert endpoint.status().status == "RUNNING"
    assert repr(endpoint) == f"<Endpoint tiny: tiny, RUNNING, {server}, docs {server}/docs>"

    endpoint.stop()
    endpoint.stop()
    assert list_endpoints() == []
    with pytest.raises(SpecError, match="tiny: no such endpoint; up are: none"):
        endpoint.status()


def test_a_context_manager_stops_only_its_endpoint(dashboard: ServeDashboard, service: Service) -> None:
    serve(service, name="a")
    with serve(service) as endpoint:
        assert [each.name for each in list_endpoints()] == ["a", "tiny"]
    [left] = list_endpoints()
    assert (left.name, endpoint.name) == ("a", "tiny")


@pytest.mark.parametrize("form", ["file", "object", "dict"])
def test_a_service_is_a_file_an_object_or_a_dict(
    form: str, dashboard: ServeDashboard, service: Service, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(service.to_yaml())
    given: Any = {
        "file": tmp_path / "tiny.yaml",
        "object": service,
        "dict": {"name": "tiny", "model": service.model, "port": service.port},
    }[form]
    endpoint = serve(given, **{"limits.max_queued_requests": 7})
    deployed = dashboard.deployed_configs()["tiny"]
    assert deployed["deployments"][0]["user_config"]["max_queued_requests"] == 7
    assert deployed["args"]["model"] == service.model
    endpoint.stop()


@pytest.mark.parametrize(
    ("given", "overrides", "message"),
    [
        ({"name": "tiny"}, {}, "Service: model: missing"),
        ({"name": "tiny", "model": "/m"}, {"prot": 1}, "Service: prot: unknown key; did you mean port?"),
        ("nowhere.yaml", {}, "nowhere.yaml: no such file"),
    ],
)
def test_nothing_is_deployed_for_an_invalid_service(
    dashboard: ServeDashboard, given: Any, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        serve(given, **overrides)
    assert message in str(caught.value)
    assert dashboard.deployed_configs() == {}


def test_a_job_cannot_be_served() -> None:
    job = Job(
        name="tiny",
        data={"train": "rows.csv"},
        inputs={"text": {"type": "text", "encoder": {"type": "conv"}}},
        fusion={"type": "concat"},
        tasks={"stars": {"type": "classification"}},
    )
    with pytest.raises(SpecError, match="expected the path of a YAML file, a dict or a Service, not Job"):
        serve(job)


def test_requests_carry_the_first_key_of_the_service(
    dashboard: ServeDashboard, service: Service, row: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYFUSE_API_KEY", "of-the-environment")
    endpoint = serve(service, **{"auth.keys": "secret-key-of-anna,secret-key-of-ben"})
    assert endpoint.api_key == "secret-key-of-anna"
    assert "key-of" not in repr(endpoint)
    assert endpoint.curl
    assert '-H "Authorization: Bearer $RAYFUSE_API_KEY"' in endpoint.curl
    [found] = list_endpoints()
    assert found.api_key == "of-the-environment"
    assert found.predict(row)["inputs_used"] == ["image", "text"]


def test_an_invalid_row_of_a_list_is_numbered(
    dashboard: ServeDashboard, service: Service, row: dict[str, Any]
) -> None:
    with serve(service) as endpoint, pytest.raises(InvalidInputError, match="row 1: image: "):
        endpoint.predict([row, {"text": "hi"}])


@pytest.mark.parametrize("running", [False, True])
def test_an_interrupted_deployment_is_rolled_back(
    running: bool, dashboard: ServeDashboard, service: Service
) -> None:
    if running:
        serve(service)
    before = dashboard.deployed_configs()

    def interrupt_once() -> None:
        dashboard.on_poll = lambda: None
        _thread.interrupt_main()

    dashboard.status, dashboard.on_poll = "DEPLOYING", interrupt_once
    with pytest.raises(KeyboardInterrupt):
        serve(service, **{"replicas.num_cpus": 2})
    assert dashboard.deployed_configs() == before
    assert [endpoint.name for endpoint in list_endpoints()] == ["tiny"] * running


@pytest.mark.parametrize("reason", ["refused", "interrupted"])
def test_a_failed_move_to_another_address_restores_the_previous_deployment(
    reason: str, dashboard: ServeDashboard, service: Service
) -> None:
    """Serve must restart to listen on all interfaces, which an endpoint with keys does."""
    serve(service)
    before = dashboard.deployed_configs()

    def interrupt_once() -> None:
        dashboard.on_poll = lambda: None
        dashboard.status = "RUNNING"
        _thread.interrupt_main()

    if reason == "refused":
        dashboard.refused_hosts = {"0.0.0.0"}
    else:
        dashboard.status, dashboard.on_poll = "DEPLOYING", interrupt_once
    with pytest.raises(ResourceError if reason == "refused" else KeyboardInterrupt):
        serve(service, **{"auth.keys": "a-key-of-16-characters"})
    assert dashboard.host == "127.0.0.1"
    assert dashboard.deployed_configs() == before
    assert [endpoint.last_status.status for endpoint in list_endpoints()] == ["RUNNING"]


def test_an_address_in_use_is_found_before_serve_is_restarted(
    dashboard: ServeDashboard, service: Service
) -> None:
    serve(service)
    before = dashboard.deployed_configs()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ResourceError, match=f"port: {port} cannot be bound"):
            serve(service, port=port)
    assert dashboard.deployed_configs() == before


def test_a_port_in_use_is_found_before_ray_is_started(
    service: Service, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ResourceError, match=f"port: {port_of(server)} cannot be bound on 127.0.0.1"):
        serve(service)
    assert not (tmp_path / "state").exists()


def test_the_endpoint_to_stop_is_selected_by_name_or_file(
    dashboard: ServeDashboard, service: Service, tmp_path: Path
) -> None:
    assert stop_endpoint() == StoppedEndpoint(None, cluster_stopped=False)
    for name in ("a", "b", "c"):
        serve(service, name=name)
    with pytest.raises(SpecError, match="several endpoints are up; pass the name of one: a, b, c"):
        stop_endpoint()
    with pytest.raises(SpecError, match="d: no such endpoint; up are: a, b, c"):
        stop_endpoint("d")
    assert stop_endpoint("b") == StoppedEndpoint("b", cluster_stopped=False)
    (tmp_path / "c.yaml").write_text(service.override(name="c").to_yaml())
    assert stop_endpoint(str(tmp_path / "c.yaml")) == StoppedEndpoint("c", cluster_stopped=False)
    assert stop_endpoint() == StoppedEndpoint("a", cluster_stopped=False)
    assert list_endpoints() == []


def test_without_a_cluster_there_is_no_endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert list_endpoints() == []
    assert stop_endpoint() == StoppedEndpoint(None, cluster_stopped=False)
    assert not (tmp_path / "state").exists()
