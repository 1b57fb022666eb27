"""Log one run to MLflow from the driver, without ever holding up or ending the training that it watches.

Everything measured goes to a journal first and then to a thread that sends it. While MLflow does not answer, the
thread keeps what it has and tries again. MLflow stores a metric of the same key, step, time and value once, so that
sending something twice does no harm.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rayfuse.errors import NotReachable, RayfuseError, SpecError
from rayfuse.registry.journal import Journal, Record, read_journal
from rayfuse.registry.sender import Sender, Task
from rayfuse.registry.source import source_tags
from rayfuse.registry.tracking import artifact_root, connect, explain, explained, shown
from rayfuse.spec.job import Job
from rayfuse.spec.sweep import Sweep

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

Status = Literal["FINISHED", "FAILED", "KILLED"]

_PARAMS_PER_REQUEST = 100
_LONGEST_PARAM = 6000
_PARENT = "mlflow.parentRunId"
_CONTEXTS = {"train": "training", "validation": "validation", "test": "testing"}

_log = logging.getLogger("rayfuse")


class Tracker:
    """One run in MLflow. `start` makes it; `log` and `artifact` never raise; `finish` ends it."""

    def __init__(
        self,
        client: "MlflowClient",
        spec: Job | Sweep,
        run_id: str,
        journal: str | Path,
        say: Callable[[str], None] = _log.warning,
    ) -> None:
        self.client, self.spec, self.run_id = client, spec, run_id
        self._journal, self._say = Journal(journal), say
        self._journal_failed = False
        self._sender = Sender(client, run_id, say)

    @classmethod
    def start(
        cls,
        client: "MlflowClient | str",
        spec: Job | Sweep,
        run_name: str,
        journal: str | Path,
        run_id: str | None = None,
        spec_file: str | None = None,
        say: Callable[[str], None] = _log.warning,
        experiment: str | None = None,
        parent: str | None = None,
    ) -> "Tracker":
        """Make a run in an experiment, by default of the spec's name, or go on with `run_id` where MLflow still has it.

        `journal`: path or URL of the run's journal; `spec_file`: what the user wrote, for the git tags; `parent`:
        the run that this one is shown below. Raises NotReachable or ResourceError: nothing has been trained yet, so this is the time to stop.
        """
        client = connect(client) if isinstance(client, str) else client
        with explained(client.tracking_uri):
            experiment_id = _experiment(client, experiment or spec.name)
            known = None if run_id is None else _existing_params(client, run_id)
            if run_id is None or known is None:
                if run_id is not None:
                    say(f"MLflow no longer has run {run_id}; it gets a new one")
                tags = source_tags(spec.kind, spec_file) | ({_PARENT: parent} if parent else {})
                run_id = str(client.create_run(experiment_id, tags=tags, run_name=run_name).info.run_id)
            else:
                client.update_run(run_id, status="RUNNING")
            _log_params(client, run_id, flatten(spec.model_dump(mode="json")), known or {})
            client.log_text(run_id, spec.model_dump_json(indent=1), "spec.json")
        return cls(client, spec, run_id, journal, say)

    @property
    def url(self) -> str:
        """Where people see the run: a page of the server, else the database and the run's id."""
        uri = self.client.tracking_uri
        if not uri.startswith("http"):
            return f"{shown(uri)} run {self.run_id}"
        experiment = self.client.get_run(self.run_id).info.experiment_id
        return f"{shown(uri).rstrip('/')}/#/experiments/{experiment}/runs/{self.run_id}"

    def set_data(self, digests: Mapping[str, str], sizes: Mapping[str, int]) -> None:
        """Note content hash and number of rows of each split."""
        self.log([{"time": time.time(), "data": {"digests": dict(digests), "sizes": dict(sizes)}}])

    def log(self, records: Sequence[Record]) -> None:
        """Keep records ({"time", "step", "metrics"}) and send them soon. Never waits for MLflow, never raises."""
        self._with_journal(lambda: self._journal.append(records))
        for record in records:
            self._enqueue(record)

    def artifact(self, local_path: str | Path, folder: str = "") -> None:
        """Send a file, or what a folder holds, soon; it must stay where it is until `finish`. Never raises."""
        path = Path(local_path)

        def send() -> None:
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), folder or None)
            elif path.exists():
                self.client.log_artifact(self.run_id, str(path), folder or None)
            else:
                self._say(f"{path}: gone before it could be sent to MLflow")

        self._sender.add(Task(path.name, send))

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run soon. Never raises."""

        def send() -> None:
            self.client.set_tag(self.run_id, name, value)

        self._sender.add(Task(name, send))

    def resend(self, journal: str | Path | None = None) -> int:
        """Send a whole journal again (this run's unless given); returns how many records it has."""
        count = 0
        for record in read_journal(journal or self._journal.url):
            self._enqueue(record)
            count += 1
        return count

    def flush(self, timeout: float = 30.0) -> bool:
        """Send all that is left, until nothing arrives for `timeout` seconds; whether everything did."""
        self._with_journal(self._journal.flush)
        return self._sender.flush(timeout) == 0

    def finish(self, status: Status = "FINISHED", timeout: float = 30.0) -> bool:
        """Send all that is left and end the run; whether MLflow has all of it.

        Raises NotReachable where MLflow takes nothing for `timeout` seconds and the run is FINISHED; a run that
        failed has an error of its own, and is not given a second one.
        """
        self._with_journal(self._journal.flush)
        left = self._sender.flush(timeout)
        problem = self._why(left) if left else self._terminate(status, timeout)
        self._sender.close()
        self._with_journal(self._journal.close)
        if problem is None:
            return True
        message = (
            f"MLflow at {shown(self.client.tracking_uri)} does not take the rest of run {self.run_id}: {problem}. "
            f"All that was measured is in {self._journal.url}; the same command sends it once MLflow is back"
        )
        if status == "FINISHED":
            raise NotReachable(f"training is complete, but {message}")
        self._say(message)
        return False

    def _enqueue(self, record: Record) -> None:
        if "data" in record:
            data = record["data"]
            self._sender.add(Task("data", lambda: self._send_data(data["digests"], data["sizes"])))
        metrics = record.get("metrics")
        if isinstance(metrics, Mapping):
            self._sender.add(*_metrics(metrics, record.get("time"), record.get("step")))

    def _with_journal(self, do: Callable[[], None]) -> None:
        """A journal that cannot be written is said once, and is no reason to stop training."""
        try:
            do()
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            if not self._journal_failed:
                self._say(f"{self._journal.url} cannot be written: {error}; training goes on")
            self._journal_failed = True

    def _why(self, left: int) -> str:
        error = self._sender.problem
        reason = error and explain(error, self.client.tracking_uri)
        return str(reason or error or f"{left} values did not arrive in time")

    def _terminate(self, status: Status, timeout: float) -> str | None:
        """End the run at MLflow, trying for `timeout` seconds; what went wrong, if anything."""
        end = time.monotonic() + timeout
        while True:
            try:
                self.client.set_terminated(self.run_id, status)
                return None
            except Exception as error:  # noqa: BLE001 - reported by the caller
                if time.monotonic() > end:
                    return str(explain(error, self.client.tracking_uri) or error)
                time.sleep(1.0)

    def _send_data(self, digests: Mapping[str, str], sizes: Mapping[str, int]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        params = [Param(f"data.{split}.digest", digest) for split, digest in digests.items()]
        params += [Param(f"data.{split}.rows", str(size)) for split, size in sizes.items()]
        self.client.log_batch(self.run_id, params=params)
        inputs = [
            DatasetInput(
                Dataset(split, digest, "url", json.dumps({"url": self._data_url(split)})),
                [InputTag("mlflow.data.context", _CONTEXTS.get(split, split))],
            )
            for split, digest in digests.items()
        ]
        self.client.log_inputs(self.run_id, inputs)

    def _data_url(self, split: str) -> str:
        assert isinstance(self.spec, Job)
        url = getattr(self.spec.data, split, None)
        return url if isinstance(url, str) else self.spec.data.train


def flatten(content: Any, path: str = "") -> dict[str, str]:
    """A nested mapping as `a.b.c` → text; lists stay whole, null is left out."""
    if isinstance(content, Mapping):
        parts = (flatten(value, f"{path}.{key}" if path else str(key)) for key, value in content.items())
        return {key: value for part in parts for key, value in part.items()}
    return {} if content is None else {path: str(content)[:_LONGEST_PARAM]}


def _metrics(metrics: Mapping[str, Any], seconds: Any, step: Any) -> "list[Metric]":
    from mlflow.entities import Metric

    timestamp = int(1000 * (time.time() if seconds is None else seconds))
    return [
        Metric(name, float(value), timestamp, int(step or 0))
        for name, value in metrics.items()
        if isinstance(value, Real) and not isinstance(value, bool)
    ]


def _experiment(client: "MlflowClient", name: str) -> str:
    """The id of the experiment `name`, made where there is none."""
    from mlflow.exceptions import MlflowException

    for attempt in range(2):
        found = client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage != "active":
                raise SpecError(
                    f"name: MLflow's experiment `{name}` was deleted; rename the job, or restore it: "
                    f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
                )
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(name, artifact_root(client.tracking_uri, name)))
        except MlflowException:  # another process made it in between
            if attempt:
                raise
    raise RayfuseError(f"MLflow has no experiment `{name}` and makes none")


def _existing_params(client: "MlflowClient", run_id: str) -> dict[str, str] | None:
    """Parameters that a run has already; None where MLflow does not have the run."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return dict(run.data.params) if run.info.lifecycle_stage == "active" else None


def _log_params(
    client: "MlflowClient", run_id: str, wanted: Mapping[str, str], known: Mapping[str, str]
) -> None:
    """Parameters cannot change, so those that are there stay as they were."""
    from mlflow.entities import Param

    params = [Param(key, value) for key, value in wanted.items() if key not in known]
    for start in range(0, len(params), _PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=params[start : start + _PARAMS_PER_REQUEST])
