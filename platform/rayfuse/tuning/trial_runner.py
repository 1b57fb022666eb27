"""One trial as Ray Tune runs it: a driver on the cluster that starts a Ray Train worker group."""

import json
from typing import Any

from rayfuse.data.store import RowDataset
from rayfuse.errors import RayfuseError
from rayfuse.registry.teacher import fetch_teacher
from rayfuse.spec.job import Job
from rayfuse.spec.load import validate_spec
from rayfuse.training import launch
from rayfuse.training.distillation import copy_teacher
from rayfuse.training.metrics_actor import Record
from rayfuse.training.runs import RunFolder, RunStatus

VALUE, EPOCH = "value", "epoch"
"""Keys that schedulers read in a report: the sweep's metric after an epoch, and that epoch's number from 1."""

RECORDS, SUMMARY, FAILURE = "records", "summary", "failure"
"""Keys of a report: records for the journal, the summary of a finished trial, the reason of a failed one."""


def run_trial(config: dict[str, Any], splits: dict[str, RowDataset]) -> None:
    """Train the job of `config`, and report the validation metrics of every epoch to Ray Tune.

    `config`: {"number", "job": JSON, "url": the trial's folder, "metric", "reload_data"}; `splits`: rows by split, for
    jobs without `reload_data`. The last report has the summary, or the reason of a failure that would occur again; any
    other failure is raised, and Tune retries the trial.
    """
    reporter = _TuneReporter(config["metric"], json.loads(config["job"])["train"]["epochs"])
    try:
        job = validate_spec(json.loads(config["job"]), Job, "job")
        if config["reload_data"]:
            job, dataset = launch.load_rows(job, lambda _: None)
            splits = dataset.splits
        run = RunFolder(config["url"], RunStatus(config["url"].rpartition("/")[2], ""))
        summary = launch.train(
            job, splits, run, reporter.on_records, False, _prepare_teacher(job, splits, run)
        )
    except RayfuseError as error:
        reporter.report({FAILURE: str(error)})
        return
    last = summary["history"][-1]
    reporter.report({**last, SUMMARY: summary, VALUE: last[config["metric"]], EPOCH: len(summary["history"])})


def _prepare_teacher(job: Job, splits: dict[str, RowDataset], run: RunFolder) -> str | None:
    """Fetch the job's teacher into the trial's folder and return its URL; None without a teacher."""
    if job.train.distillation is None:
        return None
    folder = fetch_teacher(job, splits["train"])
    return copy_teacher(folder, run) if folder else None


class _TuneReporter:
    """Reports records to Ray Tune, with the metrics of each epoch.

    The metrics of the last epoch are reported with the summary, so that no scheduler stops the trial in between.
    """

    def __init__(self, metric: str, epochs: int) -> None:
        self._key, self._epochs = f"validation/{metric}", epochs
        self._pending: list[Record] = []

    def on_records(self, records: list[Record], progress: dict[str, Any]) -> None:
        for record in (record for record in records if "replayed" not in record):
            self._pending.append(record)
            if self._key in record["metrics"] and record["epoch"] < self._epochs:
                value = {VALUE: record["metrics"][self._key], EPOCH: record["epoch"]}
                self.report(validation_metrics(record) | value)
            elif self._key in record["metrics"] or "first_step" in record or "placement_group" in record:
                self.report({})

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
