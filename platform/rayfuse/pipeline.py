"""One run from rows to a registered version: what `rayfuse train` does, for the command line and for sweeps."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rayfuse.data.dataset import Dataset
from rayfuse.errors import STOPS, Interrupted, NotReachable
from rayfuse.registry.journal import read_journal
from rayfuse.registry.pictures import save_pictures
from rayfuse.registry.storing import register
from rayfuse.registry.teacher import fetch_teacher
from rayfuse.registry.tensorboard import check_installed, event_files
from rayfuse.registry.tracker import Tracker
from rayfuse.registry.tracking import connect, tracking_uri
from rayfuse.spec.job import Job
from rayfuse.train import launch
from rayfuse.train.board import Record
from rayfuse.train.distill import keep_teacher
from rayfuse.train.plan.comparison import beside_plan
from rayfuse.train.progress import ProgressLine, without_averages
from rayfuse.train.runs import RunFolder, beat, new_run, take_over, unfinished_run

AskResume = Callable[[RunFolder], bool]
Say = Callable[[str], None]

_JOURNAL = "metrics.jsonl"
_EVALUATION = "evaluation.json"


def train_and_register(
    job: Job,
    ask_resume: AskResume,
    say: Say,
    line: ProgressLine,
    spec_file: str | None = None,
    profile: int = 0,
) -> dict[str, Any]:
    """Train `job`, log it to MLflow and register the exported model as `candidate`.

    An unfinished run of the same job and data is continued where `ask_resume` says so; one that was
    trained and could not be registered is only registered. `profile`: how many steps to look at closely. Returns {"run_id", "model", "version",
    "metrics", "evaluated_on", "by_inputs", "validation", "checkpoint", "run"}.
    Raises what the parts raise; whatever was done until then is kept in the run's folder.
    """
    launch.preflight(job)
    check_installed(job)
    client = connect(tracking_uri(job.output.tracking, job.output.storage))
    job, dataset = launch.load_rows(job, say)
    for finding in dataset.findings:
        say(finding)
    teacher = fetch_teacher(job, dataset.splits["train"])
    known = unfinished_run(job, dataset.digests)
    resumed = known is not None and ask_resume(known)
    if known is not None and resumed:
        take_over(known, say)
    run = known if known is not None and resumed else new_run(job, dataset.digests)
    tracker = Tracker.start(
        client,
        job,
        run.status.name,
        run.path(_JOURNAL),
        run.status.tracking_run,
        spec_file=spec_file,
        say=say,
    )
    if resumed:
        tracker.resend()
    run.save(status="running", tracking_run=tracker.run_id, alive=0.0)
    beat(run)
    tracker.set_data(dataset.digests, {name: len(rows) for name, rows in dataset.splits.items()})
    say(f"run {run.url}")
    try:
        evaluation = _train(job, dataset, teacher, run, tracker, line, profile)
        return _register(job, dataset, run, tracker, evaluation)
    except BaseException as error:
        _give_up(run, tracker, error)
        raise
    finally:
        line.close()


def _train(
    job: Job,
    dataset: Dataset,
    teacher: Path | None,
    run: RunFolder,
    tracker: Tracker,
    line: ProgressLine,
    profile: int,
) -> dict[str, Any]:
    """The evaluation of the trained model; what an earlier attempt of this run has done is not done again."""
    kept = run.read(_EVALUATION)
    if kept is not None:
        evaluation: dict[str, Any] = json.loads(kept)
        return evaluation

    told = {record["epoch"] for record in read_journal(run.path(_JOURNAL)) if "epoch" in record}
    kept_teacher = keep_teacher(teacher, run) if teacher else None
    with event_files(job, run.path("tensorboard"), line.say) as log_events:

        def watch(records: list[Record], progress: dict[str, Any]) -> None:
            beat(run)
            new = [record for record in records if not ("again" in record and record["epoch"] in told)]
            told.update(record["epoch"] for record in new if "epoch" in record)
            log(new)
            line.show(new, progress)

        def log(records: list[Record]) -> None:
            tracker.log(records)
            log_events(records)

        evaluation = launch.train(job, dataset.splits, run, watch, teacher=kept_teacher, profile=profile)
        named = {f"{evaluation['split']}/{name}": value for name, value in evaluation["metrics"].items()}
        memory, compared = beside_plan(job, dataset.splits["train"], evaluation["memory"])
        line.say(compared)
        log([launch.record(evaluation["steps"], named | by_inputs_metrics(evaluation) | memory)])
    run.write(_EVALUATION, json.dumps(evaluation, indent=1))
    return evaluation


def by_inputs_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of every subset of the inputs but for averages over classes: SPLIT_by_inputs/IMAGE.TEXT/TASK/METRIC.

    MLflow allows no `+` in a metric's name.
    """
    return {
        f"{evaluation['split']}_by_inputs/{subset.replace('+', '.')}/{name}": value
        for subset, metrics in evaluation["by_inputs"].items()
        for name, value in without_averages(metrics).items()
    }


def _register(
    job: Job, dataset: Dataset, run: RunFolder, tracker: Tracker, evaluation: dict[str, Any]
) -> dict[str, Any]:
    """Export the best checkpoint, send what is left to MLflow, and register the model."""
    metrics, split = evaluation["metrics"], evaluation["split"]
    about = {"run": run.status.name, "digests": dataset.digests, "metrics": metrics, "evaluated_on": split}
    with tempfile.TemporaryDirectory(prefix="rayfuse-") as scratch:
        folder = launch.export_model(job, evaluation["checkpoint"], run, Path(scratch) / "model", about)
        _report(job, run, tracker, evaluation, Path(scratch) / "report")
        tracker.finish()  # before registering: it says best what happens to a run whose MLflow is away
        validation = {"validation": evaluation["best_validation"]}
        version = register(
            tracker.client, tracker.run_id, job, folder, validation, evaluation, dataset.digests
        )
    run.save(status="finished", version=version)
    return {
        "run_id": tracker.run_id,
        "model": job.registered_name,
        "version": version,
        "metrics": metrics,
        "evaluated_on": split,
        "by_inputs": evaluation["by_inputs"],
        "validation": evaluation["best_validation"],
        "checkpoint": evaluation["checkpoint"],
        "run": run.url,
    }


def _report(job: Job, run: RunFolder, tracker: Tracker, evaluation: dict[str, Any], folder: Path) -> None:
    """Pictures and the evaluation, for MLflow and beside the run."""
    pictures = folder / "pictures"
    save_pictures(
        pictures, evaluation, read_journal(run.path(_JOURNAL)), job.chosen_by, job.metrics()[job.chosen_by]
    )
    run.upload(pictures, "pictures")
    tracker.artifact(pictures, "pictures")
    (folder / _EVALUATION).write_text(json.dumps(evaluation, indent=1), encoding="utf-8")
    tracker.artifact(folder / _EVALUATION)


def _give_up(run: RunFolder, tracker: Tracker, error: BaseException) -> None:
    """Note how the run ended, so that the same command can go on from there."""
    interrupted = isinstance(error, (*STOPS, Interrupted))
    run.save(status="interrupted" if interrupted else "failed")
    if not isinstance(error, NotReachable):
        tracker.finish("KILLED" if interrupted else "FAILED")
