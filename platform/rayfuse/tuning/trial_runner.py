"""One trial as Ray Tune runs it: a driver on the cluster that starts a Ray Train worker group."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rayfuse.data.ray_tasks import map_on_ray
from rayfuse.data.store import RowDataset
from rayfuse.errors import OutOfMemoryError, RayfuseError, RunInterruptedError
from rayfuse.spec.job import Job
from rayfuse.spec.load import validate_spec
from rayfuse.training import launch
from rayfuse.training.metrics_actor import Record
from rayfuse.training.runs import RunFolder, RunStatus

if TYPE_CHECKING:
    from rayfuse.tuning.stop_flag import StopFlag

VALUE, EPOCH = "value", "epoch"
"""Keys that schedulers read in a report: the sweep's metric after an epoch, and that epoch's number from 1."""

RECORDS, SUMMARY, FAILURE, OUT_OF_MEMORY = "records", "summary", "failure", "out_of_memory"
"""Keys of a report: records for the journal, the summary of a finished trial, the reason of a failed one and its kind."""


_IMMEDIATE = {"first_step", "placement_group", "stopped"}
"""Fields of records that are reported at once."""


def run_trial(config: dict[str, Any], splits: dict[str, RowDataset], stop_flag: "StopFlag") -> None:
    """Train the job of `config`, and report the validation metrics of every epoch to Ray Tune.

    `config`: {"number", "job": JSON, "url": the trial's folder, "metric", "reload_data"}; `splits`: rows by split, for
    jobs without `reload_data`. The last report has the summary, or the reason of a failure that would occur again; any
    other failure is raised, and Tune retries the trial. Once `stop_flag` is set, the trial saves a checkpoint and ends
    without a last report.
    """
    epochs = json.loads(config["job"])["train"]["epochs"]
    reporter = _TuneReporter(config["metric"], epochs, stop_flag.is_set)
    try:
        job = validate_spec(json.loads(config["job"]), Job, "job")
        if config["reload_data"]:
            job, dataset = launch.load_rows(job, lambda _: None)
            splits = dataset.splits
        run = RunFolder(config["url"], RunStatus(config["url"].rpartition("/")[2], ""))
        summary = launch.train(
            job, splits, run, reporter.on_records, False, _prepare_teacher(job, splits, run)
        )
    except RunInterruptedError:
        return
    except RayfuseError as error:
        reporter.report({FAILURE: str(error), OUT_OF_MEMORY: isinstance(error, OutOfMemoryError)})
        return
    last = summary["history"][-1]
    reporter.report({**last, SUMMARY: summary, VALUE: last[config["metric"]], EPOCH: len(summary["history"])})


def _prepare_teacher(job: Job, splits: dict[str, RowDataset], run: RunFolder) -> str | None:
    """Fetch the job's teacher into the trial's folder and return its URL; None without a teacher."""
    if job.train.distillation is None:
        return None
    from rayfuse.registry.teacher import fetch_teacher
    from rayfuse.training.distillation import copy_teacher

    folder = fetch_teacher(job, splits["train"], map_on_ray)
    return copy_teacher(folder, run) if folder else None


class _TuneReporter:
    """Reports records to Ray Tune, with the metrics of each epoch.

    The metrics of the last epoch are reported with the summary, so that no scheduler stops the trial in between. It
    interrupts the training once when the driver asks for that, as Ctrl-C would.
    """

    def __init__(self, metric: str, epochs: int, is_stop_requested: Callable[[], bool]) -> None:
        self._key, self._epochs = f"validation/{metric}", epochs
        self._is_stop_requested, self._interrupted = is_stop_requested, False
        self._pending: list[Record] = []

    def on_records(self, records: list[Record], progress: dict[str, Any]) -> None:
        for record in (record for record in records if "replayed" not in record):
            self._pending.append(record)
            if self._key in record["metrics"] and record["epoch"] < self._epochs:
                value = {VALUE: record["metrics"][self._key], EPOCH: record["epoch"]}
                self.report(validation_metrics(record) | value)
            elif self._key in record["metrics"] or not _IMMEDIATE.isdisjoint(record):
                self.report({})
        if not self._interrupted and self._is_stop_requested():
            self._interrupted = True
            raise KeyboardInterrupt

    def report(self, metrics: dict[str, Any]) -> None:
        from ray import tune

        pending, self._pending = self._pending, []
        tune.report({**metrics, RECORDS: pending})


def validation_metrics(record: Record) -> dict[str, float]:
    """Return the validation metrics of an epoch's record, by name without `validation/`."""
    return {
        name.removeprefix("validation/"): value
        for name, value in record["metrics"].items()
        if name.startswith("validation/")
    }
