"""Sweep from its spec to a leaderboard, on Ray Tune. A sweep that was interrupted or killed resumes."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rayfuse.data.dataset import Dataset
from rayfuse.errors import (
    INTERRUPT_EXCEPTIONS,
    RayfuseError,
    RunInterruptedError,
    SpecError,
    UnavailableError,
)
from rayfuse.registry.mlflow_connection import connect, resolve_tracking_uri
from rayfuse.registry.tracker import Tracker, check_experiment
from rayfuse.spec.job import Job
from rayfuse.spec.search_space import SearchSpace
from rayfuse.training import launch, ray_session
from rayfuse.training.preflight import preflight
from rayfuse.training.runs import RunFolder, create_run_folder, fingerprint, latest_run_folder
from rayfuse.tuning.console import ProgressReporter
from rayfuse.tuning.leaderboard import Leaderboard
from rayfuse.tuning.mlflow_runs import MlflowRuns
from rayfuse.tuning.plots import save_plots
from rayfuse.tuning.trials import Trials

LogMessage = Callable[[str], None]
ConfirmResume = Callable[[RunFolder], bool]

_LEADERBOARD_FILE = "leaderboard.json"
_BEST_FILE = "best.json"
_TUNE_ENV = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints whatever the verbosity
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The workers of a stopped trial hold their resources until its process has ended; Ray waits ten minutes.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "60",
    # Some reports of a trial carry no metric: that it started, or why it failed.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}


def run_sweep(
    space: SearchSpace,
    confirm_resume: ConfirmResume,
    log: LogMessage,
    reporter: ProgressReporter,
    spec_file: str,
    reuse_finished: bool = False,
) -> Leaderboard:
    """Run the remaining trials of a sweep, and write its leaderboard to its folder and to MLflow.

    An unfinished sweep of the same spec, job and rows is resumed if `confirm_resume` returns true for its folder; with
    `reuse_finished` a finished one is only loaded. A Ray connection of the caller stays open and unchanged.
    Raises SpecError if a trial does not fit on the cluster, RayfuseError if every trial failed, RunInterruptedError on
    Ctrl-C, SIGTERM and SIGHUP, and UnavailableError if MLflow is down. Results are saved in each case.
    """
    reference = space.trial_job(next(iter(space.combinations())))
    preflight(reference)
    client = connect(resolve_tracking_uri(reference.output.tracking_uri, reference.output.storage))
    check_experiment(client, space.job.experiment_name)
    with _ray_session(reference):
        concurrency = _concurrency(space, spec_file, log)
        fitted, dataset = launch.load_rows(reference, log)
        for warning in dataset.report:
            log(warning)
        folder = _sweep_folder(space, dataset, confirm_resume, reuse_finished)
        board = Leaderboard(space, Trials(folder), folder)
        if folder.status.status == "finished":
            log(f"sweep {folder.url} is finished")
            return board
        from rayfuse.tuning.trial_config import SharedData
        from rayfuse.tuning.tuner import TrialLoop

        runs = MlflowRuns(space, client, board.trials, spec_file, log)
        folder.save(status="running", mlflow_run_id=runs.parent_run.run_id)
        folder.write("sweep.json", space.sweep.model_dump_json(indent=1))
        log(f"sweep {folder.url}: {board.num_trials} trials, {concurrency} at a time")
        with _status_on_exit(folder, runs.parent_run, reporter):
            TrialLoop(board, SharedData(reference, fitted, dataset), runs, log).run(concurrency, reporter)
            runs.send_pending()
            _write_results(board, runs.parent_run)
            runs.parent_run.finish()
    return board


@contextmanager
def _ray_session(job: Job) -> Iterator[None]:
    """Connect to Ray with the settings that a sweep needs, and restore those of the caller at the end.

    Tune's log is off: it has a traceback for every failed attempt, of which the recorder logs the reason.
    """
    before = {name: os.environ.get(name) for name in _TUNE_ENV}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(_TUNE_ENV)
    logger.setLevel(logging.CRITICAL)
    try:
        with ray_session.connect(job):
            yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _status_on_exit(folder: RunFolder, parent_run: Tracker, reporter: ProgressReporter) -> Iterator[None]:
    """Save how the sweep ended, so that the same command can resume it."""
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, (*INTERRUPT_EXCEPTIONS, RunInterruptedError))
        with suppress(RayfuseError):  # of a storage that is gone, which would hide the reason
            folder.save(status="interrupted" if interrupted else "failed")
        if not isinstance(error, UnavailableError):
            parent_run.finish("KILLED" if interrupted else "FAILED")
        raise
    else:
        folder.save(status="finished")
    finally:
        reporter.close()


def _concurrency(space: SearchSpace, spec_file: str, log: LogMessage) -> int:
    """Return how many trials run at a time: what the sweep asks for, at most what fits on the cluster."""
    jobs = [space.trial_job(values) for values in space.combinations()] if _varies_compute(space) else []
    jobs = jobs or [space.trial_job(next(iter(space.combinations())))]
    largest = min(jobs, key=launch.max_concurrent_jobs)
    capacity = launch.max_concurrent_jobs(largest)
    if not capacity:
        raise SpecError(f"{spec_file}: {_workers_path(space)}: {launch.capacity_message(largest)}")
    wanted = space.sweep.concurrency or capacity
    if wanted > capacity:
        log(f"concurrency: {wanted} is above the {capacity} trials that fit on the cluster; using {capacity}")
    return min(wanted, capacity)


def _varies_compute(space: SearchSpace) -> bool:
    return any(path.split(".")[0] == "compute" for path in space.sweep.space)


def _workers_path(space: SearchSpace) -> str:
    """Return the key of the spec that sets the number of workers of a trial."""
    for section, given in (("space", space.sweep.space), ("trial_overrides", space.sweep.trial_overrides)):
        for path in given:
            if path.split(".")[0] == "compute":
                return f"{section}.{path}"
    return "job: compute.workers"


def _sweep_folder(
    space: SearchSpace, dataset: Dataset, confirm_resume: ConfirmResume, reuse_finished: bool
) -> RunFolder:
    """Return the folder of the sweep to resume, or of a new one."""
    parent = f"{space.job.output.storage}/{space.sweep.name}"
    mark = _fingerprint(space, dataset)
    newest = latest_run_folder(parent, mark)
    if newest is not None and newest.status.status == "finished":
        return newest if reuse_finished else create_run_folder(parent, mark)
    return newest if newest is not None and confirm_resume(newest) else create_run_folder(parent, mark)


def _fingerprint(space: SearchSpace, dataset: Dataset) -> str:
    """Hash what the results of trials depend on; their number and concurrency are left out."""
    without: Any = {"concurrency": True, "time_budget": True, "job": True, "search": {"trials", "repeats"}}
    sweep = space.sweep.model_dump(mode="json", exclude=without)
    text = json.dumps([sweep, fingerprint(space.job, dataset.digests)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _write_results(board: Leaderboard, parent_run: Tracker) -> None:
    """Write leaderboard, best job and plots. Raises RayfuseError if no trial can be the best."""
    folder = board.folder
    folder.write(_LEADERBOARD_FILE, json.dumps(board.to_dict(), indent=1))
    best = board.best()
    if best is None:
        raise RayfuseError(
            f"no trial finished with a value of {board.space.sweep.metric}: {board.first_error()}; see {folder.url}, "
            "and pass --no-resume to start again"
        )
    folder.write(_BEST_FILE, board.winner(best).model_dump_json(indent=1))
    with tempfile.TemporaryDirectory(prefix="rayfuse-") as scratch:
        local = Path(scratch)
        save_plots(local / "plots", board)
        folder.upload(local / "plots", "plots")
        for name in (_LEADERBOARD_FILE, _BEST_FILE):
            (local / name).write_text(folder.read(name) or "", encoding="utf-8")
            parent_run.log_artifact(local / name)
        parent_run.log_artifact(local / "plots", "plots")
        parent_run.flush()
