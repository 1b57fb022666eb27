"""Helpers for tests of endpoints, with and without Ray."""

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tiny_jobs import make_model_folder, tiny_job

from rayfuse.serving.serve_config import EndpointStatus


def b64(content: bytes) -> dict[str, str]:
    """Return a file in the form of a JSON request."""
    return {"b64": base64.b64encode(content).decode()}


def problem_of(response: Any, status: int, detail: str = "") -> dict[str, Any]:
    """Return the problem of a response, after checking its members."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert detail in problem["detail"]
    assert "Traceback" not in response.text
    return problem


def running_endpoint(name: str) -> EndpointStatus:
    """Return the status of a running endpoint at http://host/NAME."""
    return EndpointStatus(
        name=name,
        status="RUNNING",
        url=f"http://host/{name}",
        model={},
        replicas=1,
        num_api_keys=0,
        message="",
        dashboard="http://host",
    )


def replica_metrics(cluster: Any, name: str) -> list[Any]:
    """Return the samples of a metric of the replicas on a cluster, as Prometheus reads them."""
    import httpx
    from prometheus_client.parser import text_string_to_metric_families

    found = httpx.get(
        f"{cluster.dashboard_url}/api/prometheus/sd",
        headers={"Authorization": f"Bearer {cluster.token}"},
        trust_env=False,
    ).json()
    targets = {target for part in found for target in part["targets"]}
    pages = []
    for target in targets:
        with suppress(httpx.TransportError):  # of a process that is starting, or has ended
            pages.append(httpx.get(f"http://{target}/metrics", trust_env=False).text)
    samples = (
        sample
        for page in pages
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    )
    return [sample for sample in samples if sample.name == f"ray_{name}"]


@contextmanager
def serve_app_in_thread(app: Any) -> Iterator[str]:
    """Serve an ASGI application on a real HTTP server, and yield its URL."""
    import uvicorn

    from rayfuse.cluster.local import free_ports

    [port] = free_ports(1)
    running = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join()


@contextmanager
def serve_in_thread(predictor: Any, route: str, *more_routes: str, **settings: Any) -> Iterator[str]:
    """Serve a model on a real HTTP server without Ray, and yield the URL of its (first) route."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    from rayfuse.serving.app import build_app
    from rayfuse.serving.engine import InferenceEngine
    from rayfuse.serving.settings import Settings

    engine = InferenceEngine(predictor, Settings(**{"batch_wait_timeout": 0.0, **settings}))
    engine.decoders.start()
    app = build_app(engine)
    with serve_app_in_thread(
        Starlette(routes=[Mount(each, app=app) for each in (route, *more_routes)])
    ) as url:
        yield f"{url}{route}"
    engine.decoders.close()


def make_served_model(folder: Path) -> Path:
    """Return a slightly trained model of an image, a text and, optionally, a clip."""
    job = tiny_job(folder / "data", audio=True, **{"inputs.image.optional": False, "data.max_bad_rows": 1.0})
    return make_model_folder(folder, steps=20, job=job)


def make_champion(tracking_uri: str, folder: Path, name: str) -> int:
    """Register a model folder as `rayfuse train` does, promote it, and return its version."""
    from rayfuse.model.model_io import load_job
    from rayfuse.registry.mlflow_connection import connect
    from rayfuse.registry.promotion import promote
    from rayfuse.registry.registration import register
    from rayfuse.registry.tracker import Tracker

    client, job = connect(tracking_uri), load_job(folder)[0].model_copy(update={"name": name})
    tracker = Tracker.start(client, job, "run", folder.parent / "metrics.jsonl")
    measured = {"metrics": {"answer/accuracy": 0.9, "loss": 0.1}, "by_inputs": {}, "split": "test"}
    version = register(client, tracker.run_id, job, folder, {}, measured, {"test": "digest"})
    tracker.finish()
    promote(client, name, force=True)
    return version
