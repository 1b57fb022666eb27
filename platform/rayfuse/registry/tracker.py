"""Tracking of a run in MLflow, which neither delays nor ends the training.

Metrics go to a journal first, then to a thread that sends them and retries while MLflow is down. MLflow stores a metric
of the same key, step, time and value once, so that metrics can be sent twice.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rayfuse.data.ingest import split_urls
from rayfuse.errors import RayfuseError, SpecError, UnavailableError
from rayfuse.formatting import first_line, truncate
from rayfuse.registry.async_sender import AsyncSender, SendJob
from rayfuse.registry.journal import Journal, Record, read_journal
from rayfuse.registry.mlflow_connection import artifact_root, connect
from rayfuse.registry.mlflow_errors import (
    is_missing,
    is_rejected,
    redact_uri,
    translate_error,
    translate_errors,
)
from rayfuse.registry.model_card import describe
from rayfuse.registry.run_params import mlflow_names, run_params
from rayfuse.registry.run_tags import DESCRIPTION_TAG, source_tags
from rayfuse.spec.job import Job
from rayfuse.spec.rows import Urls
from rayfuse.spec.sweep import Sweep

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

Status = Literal["FINISHED", "FAILED", "KILLED"]
"""MLflow's final status of a run."""

_FINISH_SECONDS: dict[Status, float] = {"FINISHED": 30.0, "FAILED": 10.0, "KILLED": 2.0}
"""Time without progress after which the end of a run gives up: a process that is being stopped has little time."""

_PARAMS_PER_REQUEST = 100
_MAX_TAG_LENGTH = 250
_PARENT_RUN_TAG = "mlflow.parentRunId"
_DATASET_CONTEXTS = {"train": "training", "validation": "validation", "test": "testing"}

_log = logging.getLogger(__name__)


class Tracker:
    """A run in MLflow. `start` creates it; `log` and `log_artifact` never raise; `finish` ends it."""

    def __init__(
        self,
        client: "MlflowClient",
        spec: Job | Sweep,
        run_id: str,
        journal: str | Path,
        log: Callable[[str], None] = _log.warning,
    ) -> None:
        self.client, self.spec, self.run_id = client, spec, run_id
        self._journal, self._log = Journal(journal), log
        self._journal_failed = False
        self._sender = AsyncSender(client, run_id, log)

    @classmethod
    def start(
        cls,
        client: "MlflowClient | str",
        spec: Job | Sweep,
        run_name: str,
        journal: str | Path,
        run_id: str | None = None,
        spec_file: str | None = None,
        log: Callable[[str], None] = _log.warning,
        experiment: str | None = None,
        parent_run_id: str | None = None,
    ) -> "Tracker":
        """Create a run in an experiment (default: the spec's name), or continue `run_id` if MLflow still has it.

        `journal`: path or URL of the run's journal; `spec_file`: the user's YAML file, for the git tags;
        `parent_run_id`: the run above it. Raises UnavailableError or ResourceError as `connect` does.
        """
        client = connect(client) if isinstance(client, str) else client
        with translate_errors(client.tracking_uri):
            experiment_id = get_or_create_experiment(client, experiment or spec.name)
            known = None if run_id is None else _existing_params(client, run_id)
            if run_id is None or known is None:
                if run_id is not None:
                    log(f"MLflow has no run {run_id} any more; creating a new one")
                tags = source_tags(spec.kind, spec_file) | {DESCRIPTION_TAG: describe(spec)}
                tags |= {_PARENT_RUN_TAG: parent_run_id} if parent_run_id else {}
                run_id = str(client.create_run(experiment_id, tags=tags, run_name=run_name).info.run_id)
            else:
                client.update_run(run_id, status="RUNNING")
            _log_params(client, run_id, run_params(spec), known or {}, log)
            client.log_text(run_id, spec.model_dump_json(indent=1), "spec.json")
        return cls(client, spec, run_id, journal, log)

    @property
    def url(self) -> str:
        """URL of the run's page on a server; for a database, its URI and the run's ID."""
        uri = self.client.tracking_uri
        if not uri.startswith("http"):
            return f"{redact_uri(uri)} run {self.run_id}"
        experiment = self.client.get_run(self.run_id).info.experiment_id
        return f"{redact_uri(uri).rstrip('/')}/#/experiments/{experiment}/runs/{self.run_id}"

    def log_datasets(self, digests: Mapping[str, str], sizes: Mapping[str, int]) -> None:
        """Log content hash and number of rows of each split."""
        self.log([{"time": time.time(), "data": {"digests": dict(digests), "sizes": dict(sizes)}}])

    def log(self, records: Sequence[Record]) -> None:
        """Append records ({"time", "step", "metrics"}) to the journal and send them soon, without waiting. Never raises."""
        self._try_journal(lambda: self._journal.append(records))
        for record in records:
            self._enqueue(record)

    def log_artifact(self, local_path: str | Path, folder: str = "") -> None:
        """Send a file, or the content of a folder, soon; it must exist until `finish`. Never raises."""
        path = Path(local_path)

        def send() -> None:
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), folder or None)
            elif path.exists():
                self.client.log_artifact(self.run_id, str(path), folder or None)
            else:
                self._log(f"{path}: deleted before it was sent to MLflow")

        self._sender.add(SendJob(path.name, send))

    def set_tag(self, name: str, value: str) -> None:
        """Set a tag of the run soon, to the beginning of a long value. Never raises."""

        def send() -> None:
            self.client.set_tag(self.run_id, name, truncate(value, _MAX_TAG_LENGTH))

        self._sender.add(SendJob(name, send))

    def resend(self, journal: str | Path | None = None) -> int:
        """Send a complete journal again (default: this run's); return its number of records."""
        count = 0
        for record in read_journal(journal or self._journal.url):
            self._enqueue(record)
            count += 1
        return count

    def flush(self, timeout: float = 30.0) -> bool:
        """Send everything, until there is no progress for `timeout` seconds; return whether MLflow has all of it."""
        self._try_journal(self._journal.flush)
        return self._sender.flush(timeout) == 0

    def finish(self, status: Status = "FINISHED", timeout: float | None = None) -> bool:
        """Send everything and end the run; return whether MLflow has all of it.

        Raises UnavailableError if there is no progress for `timeout` seconds (default: 30) and `status` is FINISHED; for
        another status (10 s for FAILED, 2 s for KILLED) this is only logged, as the caller raises the error of the run.
        """
        timeout = _FINISH_SECONDS[status] if timeout is None else timeout
        self._try_journal(self._journal.flush)
        left = self._sender.flush(timeout)
        problem = self._failure_reason(left) if left else self._terminate(status, timeout)
        self._sender.close()
        self._try_journal(self._journal.close)
        if problem is None:
            return True
        message = (
            f"MLflow at {redact_uri(self.client.tracking_uri)} did not accept the rest of run {self.run_id}: {problem}. "
            f"All metrics are in {self._journal.url}; the same command sends them once MLflow is back"
        )
        if status == "FINISHED":
            raise UnavailableError(f"training is complete, but {message}")
        self._log(message)
        return False

    def _enqueue(self, record: Record) -> None:
        if "data" in record:
            data = record["data"]
            self._sender.add(SendJob("data", lambda: self._send_datasets(data["digests"], data["sizes"])))
        metrics = record.get("metrics")
        if isinstance(metrics, Mapping):
            self._sender.add(*_to_mlflow_metrics(metrics, record.get("time"), record.get("step")))

    def _try_journal(self, do: Callable[[], None]) -> None:
        """Write to the journal. The first error is logged; training continues."""
        try:
            do()
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            if not self._journal_failed:
                self._log(f"{self._journal.url} cannot be written: {error}; training continues")
            self._journal_failed = True

    def _failure_reason(self, left: int) -> str:
        error = self._sender.last_error
        reason = error and translate_error(error, self.client.tracking_uri)
        return str(reason or error or f"{left} values were not sent in time")

    def _terminate(self, status: Status, timeout: float) -> str | None:
        """End the run in MLflow, with retries for `timeout` seconds; return the error, if any."""
        end = time.monotonic() + timeout
        while True:
            try:
                self.client.set_terminated(self.run_id, status)
                return None
            except Exception as error:  # noqa: BLE001 - reported by the caller
                if time.monotonic() > end:
                    return str(translate_error(error, self.client.tracking_uri) or error)
                time.sleep(1.0)

    def _send_datasets(self, digests: Mapping[str, str], sizes: Mapping[str, int]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        params = [Param(f"data.{split}.digest", digest) for split, digest in digests.items()]
        params += [Param(f"data.{split}.rows", str(size)) for split, size in sizes.items()]
        self.client.log_batch(self.run_id, params=params)
        inputs = [
            DatasetInput(
                Dataset(split, digest, "url", json.dumps({"url": self._data_url(split)})),
                [InputTag("mlflow.data.context", _DATASET_CONTEXTS.get(split, split))],
            )
            for split, digest in digests.items()
        ]
        self.client.log_inputs(self.run_id, inputs)

    def _data_url(self, split: str) -> Urls:
        assert isinstance(self.spec, Job)
        urls = split_urls(self.spec)
        return urls.get(split, urls["train"])


def _to_mlflow_metrics(metrics: Mapping[str, Any], seconds: Any, step: Any) -> "list[Metric]":
    from mlflow.entities import Metric

    timestamp = int(1000 * (time.time() if seconds is None else seconds))
    names = mlflow_names(metrics)
    return [
        Metric(names[name], float(value), timestamp, int(step or 0))
        for name, value in metrics.items()
        if isinstance(value, Real) and not isinstance(value, bool)
    ]


def check_experiment(client: "MlflowClient", name: str) -> None:
    """Raise SpecError if the experiment `name` is deleted, so that no run can be created in it."""
    with translate_errors(client.tracking_uri):
        _find_experiment(client, name)


def _find_experiment(client: "MlflowClient", name: str) -> str | None:
    """Return the ID of the experiment `name`; None if there is none. Raises SpecError if it is deleted."""
    found = client.get_experiment_by_name(name)
    if found is None:
        return None
    if found.lifecycle_stage != "active":
        raise SpecError(
            f"output.experiment: MLflow's experiment `{name}` is deleted; use another one, or restore it: "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
        )
    return str(found.experiment_id)


def get_or_create_experiment(client: "MlflowClient", name: str) -> str:
    """Return the ID of the experiment `name`, which is created if there is none."""
    from mlflow.exceptions import MlflowException

    for attempt in range(2):
        found = _find_experiment(client, name)
        if found is not None:
            return found
        try:
            return str(client.create_experiment(name, artifact_root(client.tracking_uri, name)))
        except MlflowException:  # another process has created it in between
            if attempt:
                raise
    raise RayfuseError(f"MLflow cannot create the experiment `{name}`; check its server")


def _existing_params(client: "MlflowClient", run_id: str) -> dict[str, str] | None:
    """Return the parameters of a run; None if MLflow does not have it."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if is_missing(error):
            return None
        raise
    return dict(run.data.params) if run.info.lifecycle_stage == "active" else None


def _log_params(
    client: "MlflowClient",
    run_id: str,
    wanted: Mapping[str, str],
    known: Mapping[str, str],
    log: Callable[[str], None],
) -> None:
    """Log parameters that the run does not have; MLflow does not allow others to change.

    Those that MLflow rejects are reported to `log`: the complete spec is in spec.json.
    """
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    params = [Param(key, value) for key, value in wanted.items() if key not in known]
    for start in range(0, len(params), _PARAMS_PER_REQUEST):
        try:
            client.log_batch(run_id, params=params[start : start + _PARAMS_PER_REQUEST])
        except MlflowException as error:
            if not is_rejected(error):
                raise
            log(f"MLflow rejected parameters, which are only in spec.json: {first_line(str(error))}")
