"""One trial, as Ray Tune runs it: a driver on the cluster with a Ray Train worker group of its own."""

import json
from typing import Any

from rayfuse.data.store import Rows
from rayfuse.errors import RayfuseError
from rayfuse.registry.teacher import fetch_teacher
from rayfuse.spec.job import Job
from rayfuse.spec.load import check
from rayfuse.train import launch
from rayfuse.train.board import Record
from rayfuse.train.distill import keep_teacher
from rayfuse.train.runs import RunFolder, RunStatus

VALUE, EPOCH = "value", "epoch"
"""What schedulers look at: the sweep's metric, and the epochs that it took."""

RECORDS, OUTCOME, FAILURE = "records", "outcome", "failure"


def drive(config: dict[str, Any], splits: dict[str, Rows]) -> None:
    """Train the job of `config`, telling Tune the sweep's metric after every epoch.

    `config`: {"job": JSON, "url": the trial's folder, "metric", "own_rows"}; `splits`: the rows of a dataset,
    for jobs without `own_rows`. Ends with an outcome, or with the reason of a failure that another try would
    not heal; anything else is raised, and Tune tries again.
    """
    reports = _Reports(config["metric"], json.loads(config["job"])["train"]["epochs"])
    try:
        job = check(json.loads(config["job"]), Job, "job")
        if config["own_rows"]:
            job, dataset = launch.load_rows(job, lambda _: None)
            splits = dataset.splits
        run = RunFolder(config["url"], RunStatus(config["url"].rpartition("/")[2], ""))
        outcome = launch.train(job, splits, run, reports.watch, False, _teacher(job, splits, run))
    except RayfuseError as error:
        reports.send({FAILURE: str(error)})
        return
    history = outcome["history"]
    reports.send({OUTCOME: outcome, VALUE: history[-1][config["metric"]], EPOCH: len(history)})


def _teacher(job: Job, splits: dict[str, Rows], run: RunFolder) -> str | None:
    """Where the workers find the job's teacher, if it has one."""
    if job.train.distill is None:
        return None
    folder = fetch_teacher(job, splits["train"])
    return keep_teacher(folder, run) if folder else None


class _Reports:
    """Hands what was measured to Tune, together with each epoch's value.

    That of the last epoch comes with the outcome: a scheduler has nothing left to stop then.
    """

    def __init__(self, metric: str, epochs: int) -> None:
        self._key, self._epochs = f"validation/{metric}", epochs
        self._pending: list[Record] = []

    def watch(self, records: list[Record], progress: dict[str, Any]) -> None:
        for record in (record for record in records if "again" not in record):
            self._pending.append(record)
            if self._key in record["metrics"] and record["epoch"] < self._epochs:
                self.send({VALUE: record["metrics"][self._key], EPOCH: record["epoch"]})
            elif self._key in record["metrics"] or "started" in record or "room" in record:
                self.send({})

    def send(self, more: dict[str, Any]) -> None:
        from ray import tune

        pending, self._pending = self._pending, []
        tune.report({**more, RECORDS: pending})
