"""The demo: the whole workflow on this machine, from data to predictions over HTTP."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayfuse.api.serving import Endpoint, serve
from rayfuse.api.training import train_job
from rayfuse.cluster import local
from rayfuse.data.ingest import split_urls
from rayfuse.demo.prepare import make_data, make_models
from rayfuse.demo.services import mlflow_server, ray_cluster
from rayfuse.registry.mlflow_connection import connect, resolve_tracking_uri
from rayfuse.registry.promotion import promote
from rayfuse.signals import termination_as_interrupt
from rayfuse.spec.job import Job
from rayfuse.spec.load import load_spec
from rayfuse.spec.service import Service

_METRIC_THRESHOLDS = {"answer/accuracy": 0.95}

_log = logging.getLogger(__name__)


@dataclass
class Addresses:
    """URLs of a running demo."""

    endpoint: str
    """Route of the endpoint."""
    docs: str
    """Swagger UI of the endpoint."""
    dashboard: str
    """Ray dashboard."""
    mlflow: str
    """MLflow UI."""
    token_file: str
    """File with the token of the Ray dashboard."""


@dataclass
class DemoResult:
    """Results of the demo."""

    predictions: list[dict[str, Any]] = field(default_factory=list)
    """Responses of the endpoint: with all inputs, and without audio."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics on the test rows."""
    by_inputs: dict[str, dict[str, float]] = field(default_factory=dict)
    """The same by subset of inputs."""
    version: int = 0
    """Registered version of the model."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration by step."""

    @contextmanager
    def timed_step(self, name: str) -> Iterator[None]:
        """Log a step and record its duration."""
        _log.info("── %s", name)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 1)


def prepare(root: Path) -> None:
    """Make the data set in `root`/data and the text encoder in `root`/models, unless they exist."""
    make_data(root / "data")
    make_models(root / "models")


def run(
    root: Path,
    overrides: Mapping[str, Any] | None = None,
    on_ready: Callable[[Addresses], None] | None = None,
) -> DemoResult:
    """Run the demo with the specs in `root`/jobs and `root`/serve; `overrides` change the job.

    All processes that it starts are stopped at the end, after `on_ready` (if given) has returned.
    """
    result = DemoResult()
    with termination_as_interrupt(), ExitStack() as cleanup:
        with result.timed_step("prepare the data and the text encoder"):
            prepare(root)
        job_file = root / "jobs" / "digit_arithmetic.yaml"
        job = load_spec(job_file, Job, overrides)
        service = load_spec(root / "serve" / "digit_arithmetic.yaml", Service)
        tracking_uri = resolve_tracking_uri(job.output.tracking_uri, job.output.storage)
        with result.timed_step("start Ray"):
            num_cpus = max(os.cpu_count() or 1, int(job.compute.max_workers * job.compute.cpus_per_worker))
            state_dir = Path(job.output.storage) / ".demo"
            cluster = cleanup.enter_context(ray_cluster(state_dir, num_cpus))
        with result.timed_step("train with Ray Train, DeepSpeed and LoRA, and register"):
            _train(job, job_file, result)
        with result.timed_step("promote through the gates"):
            record = promote(connect(tracking_uri), job.registered_model_name, thresholds=_METRIC_THRESHOLDS)
            _log.info("%s", record.text())
        with result.timed_step("serve with Ray Serve"):
            endpoint = serve(service, tracking_uri=service.tracking_uri or tracking_uri)
        with result.timed_step("predict over HTTP"):
            result.predictions = _predict_example(endpoint, Path(str(split_urls(job)["test"])))
        if on_ready is not None:
            mlflow = cleanup.enter_context(mlflow_server(tracking_uri))
            token_file = str(local.state_file(state_dir))
            on_ready(Addresses(endpoint.url, endpoint.docs_url, cluster.dashboard_url, mlflow, token_file))
        with result.timed_step("stop everything"):
            cleanup.close()
    return result


def _train(job: Job, job_file: Path, result: DemoResult) -> None:
    trained = train_job(job, str(job_file), resume=False)
    result.metrics, result.by_inputs, result.version = trained.metrics, trained.by_inputs, trained.version


def _predict_example(endpoint: Endpoint, rows: Path) -> list[dict[str, Any]]:
    """Predict a test row with all inputs, and without audio, of which a sum cannot be right."""
    with rows.open(encoding="utf-8") as file:
        row: dict[str, Any] = next(row for row in map(json.loads, file) if row["op"] == "sum")
    values = {"image": rows.parent / row["image"], "audio": rows.parent / row["audio"], "text": row["text"]}
    predictions = endpoint.predict([values, {**values, "audio": None}])
    for prediction in predictions:
        _log.info("%s", _format_prediction(row, prediction))
    return predictions


def _format_prediction(row: dict[str, Any], prediction: dict[str, Any]) -> str:
    answer = prediction["outputs"]["answer"]
    score = answer["scores"][str(answer["label"])]
    return (
        f"“{row['text']}” with a written {row['image_digit']} and a spoken {row['audio_digit']}: {answer['label']} "
        f"({score:.0%}) from {', '.join(prediction['inputs_used'])}; correct: {row['label']}"
    )
