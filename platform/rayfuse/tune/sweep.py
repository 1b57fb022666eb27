"""A sweep from its spec to a leaderboard, on Ray Tune; killed at any time, the same sweep goes on."""

import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from rayfuse.data.dataset import Dataset
from rayfuse.errors import STOPS, Interrupted, NotReachable, RayfuseError, SpecError
from rayfuse.registry.tracker import Tracker
from rayfuse.registry.tracking import connect, tracking_uri
from rayfuse.spec.job import Job
from rayfuse.spec.space import Space
from rayfuse.spec.sweep import AshaScheduler, Sweep
from rayfuse.train import launch
from rayfuse.train.runs import RunFolder, fingerprint, new_folder, newest_folder
from rayfuse.tune.leaderboard import Leaderboard
from rayfuse.tune.pictures import save_pictures
from rayfuse.tune.trials import JOURNAL, Trial, Trials

if TYPE_CHECKING:
    from mlflow import MlflowClient

Say = Callable[[str], None]
AskResume = Callable[[RunFolder], bool]

_POLL_SECONDS = 0.5
_LEADERBOARD = "leaderboard.json"
_BEST = "best.json"
_TUNE = {
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints whatever the verbosity
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Until the process of a stopped trial has ended, its workers keep their room; Ray would wait for ten minutes.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "60",
    # A trial also reports what is no value: that it began, or why it failed.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}


class View(Protocol):
    """Shows people how a sweep goes."""

    def show(self, board: Leaderboard) -> None:
        """Called about twice a second."""

    def close(self) -> None:
        """Called once, at the end."""


@dataclass
class _Rows:
    """The rows that trials share, and the job that they were checked for."""

    job: Job
    fitted: Job
    dataset: Dataset


def run_sweep(
    space: Space, ask_resume: AskResume, say: Say, view: View, spec_file: str, keep_finished: bool = False
) -> Leaderboard:
    """Run the trials that are left of a sweep, and write its leaderboard to its folder and to MLflow.

    An unfinished sweep of the same spec, job and rows is continued where `ask_resume` says so; with `keep_finished`
    one that is finished is only read again. Raises SpecError where the cluster has no room for a trial,
    RayfuseError where every trial failed, Interrupted on Ctrl-C, NotReachable where MLflow did not get all;
    what was done is kept.
    """
    os.environ.update(_TUNE)
    reference = space.trial_job(next(iter(space.combinations())))
    launch.preflight(reference)
    client = connect(tracking_uri(reference.output.tracking, reference.output.storage))
    launch.connect(reference)
    concurrency = _concurrency(space, spec_file, say)
    fitted, dataset = launch.load_rows(reference, say)
    for finding in dataset.findings:
        say(finding)
    folder = _folder(space, dataset, ask_resume, keep_finished)
    trials = Trials(folder)
    board = Leaderboard(space, trials, folder)
    if folder.status.status == "finished":
        say(f"sweep {folder.url} is finished")
        return board
    runs = _Runs(space, client, trials, spec_file, say)
    folder.save(status="running", tracking_run=runs.parent.run_id)
    folder.write("sweep.json", space.sweep.model_dump_json(indent=1))
    say(f"sweep {folder.url}: {board.wanted} trials, {concurrency} at a time")
    try:
        _run_trials(space, _Rows(reference, fitted, dataset), board, concurrency, runs, view, say)
        send_rest(trials, runs.track)
        _report(board, runs.parent)
        runs.parent.finish()
        folder.save(status="finished")
    except BaseException as error:
        interrupted = isinstance(error, (*STOPS, Interrupted))
        folder.save(status="interrupted" if interrupted else "failed")
        if not isinstance(error, NotReachable):
            runs.parent.finish("KILLED" if interrupted else "FAILED")
        raise
    finally:
        view.close()
    return board


class _Runs:
    """The sweep's own run in MLflow, and those of its trials below it."""

    def __init__(
        self, space: Space, client: "MlflowClient", trials: Trials, spec_file: str, say: Say
    ) -> None:
        self._space, self._client, self._trials = space, client, trials
        self._spec_file, self._say = spec_file, say
        folder = trials.folder
        self.parent = self._start(space.sweep, folder, folder.status.name, folder.status.tracking_run)
        self.parent.resend()

    def track(self, trial: Trial) -> Tracker:
        """Open the run of a trial, or make it. Raises NotReachable where MLflow does not answer."""
        run = self._trials.run(trial)
        name = f"{self._trials.folder.status.name}-{run.status.name}"
        job = self._space.trial_job(trial.values)
        return self._start(job, run, name, trial.run_id, self.parent.run_id)

    def _start(
        self, spec: Job | Sweep, folder: RunFolder, name: str, run_id: str | None, parent: str | None = None
    ) -> Tracker:
        return Tracker.start(
            self._client,
            spec,
            name,
            folder.path(JOURNAL),
            run_id,
            self._spec_file,
            self._say,
            experiment=self._space.job.name,
            parent=parent,
        )


def _concurrency(space: Space, spec_file: str, say: Say) -> int:
    """Trials at a time: what the sweep wants, and the cluster has room for."""
    jobs = [space.trial_job(values) for values in space.combinations()] if _varies_compute(space) else []
    jobs = jobs or [space.trial_job(next(iter(space.combinations())))]
    largest = min(jobs, key=launch.room_for)
    room = launch.room_for(largest)
    if not room:
        raise SpecError(f"{spec_file}: {_workers_path(space)}: {launch.no_room(largest)}")
    wanted = space.sweep.concurrency or room
    if wanted > room:
        say(f"concurrency: {wanted} trials at a time are wanted, the cluster has room for {room}")
    return min(wanted, room)


def _varies_compute(space: Space) -> bool:
    return any(path.split(".")[0] == "compute" for path in space.sweep.space)


def _workers_path(space: Space) -> str:
    """Where the number of workers of a trial is said."""
    for block, given in (("space", space.sweep.space), ("trial", space.sweep.trial)):
        for path in given:
            if path.split(".")[0] == "compute":
                return f"{block}.{path}"
    return "job: compute.workers"


def _folder(space: Space, dataset: Dataset, ask_resume: AskResume, keep_finished: bool) -> RunFolder:
    """The folder of the sweep that is to go on, or of a new one."""
    parent = f"{space.job.output.storage}/{space.sweep.name}"
    mark = _fingerprint(space, dataset)
    newest = newest_folder(parent, mark)
    if newest is not None and newest.status.status == "finished":
        return newest if keep_finished else new_folder(parent, mark)
    return newest if newest is not None and ask_resume(newest) else new_folder(parent, mark)


def _fingerprint(space: Space, dataset: Dataset) -> str:
    """Same for sweeps whose trials could be told apart by nothing: how many there are and how many run at a time
    does not matter."""
    without: Any = {"concurrency": True, "budget": True, "job": True, "search": {"trials", "repeats"}}
    sweep = space.sweep.model_dump(mode="json", exclude=without)
    text = json.dumps([sweep, fingerprint(space.job, dataset.digests)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _run_trials(
    space: Space,
    rows: _Rows,
    board: Leaderboard,
    concurrency: int,
    runs: _Runs,
    view: View,
    say: Say,
) -> None:
    import ray

    from rayfuse.tune.recorder import Recorder
    from rayfuse.tune.search import Suggestions, strategy

    ways = strategy(space)
    prepare = _Preparation(space, rows, board.trials)
    suggestions = Suggestions(ways, board.trials, prepare.config, "value", space.mode)
    left = _budget_left(space, board.folder)
    if not suggestions.count or left == 0:
        return
    recorder = Recorder(board.trials, suggestions, ways, runs.track, say)
    scratch = tempfile.mkdtemp(prefix="rayfuse-tune-")
    began, spent = time.time(), board.folder.status.seconds
    tuner = _tuner(space, rows, suggestions, recorder, concurrency, left, board, scratch)
    tuning = _Tuning(tuner)
    best = _BestSoFar(space, board, runs.parent)
    try:
        while not tuning.wait(_POLL_SECONDS):
            view.show(board)
            if best.log():
                board.folder.save(seconds=spent + time.time() - began)
        recorder.close(interrupted=tuning.error is not None)
        if tuning.error is not None:
            raise tuning.error
    except STOPS:
        recorder.close(interrupted=True)
        raise Interrupted(f"stopped; what was done is kept in {board.folder.url}") from None
    finally:
        ray.shutdown()  # ends what trials left behind that were stopped; all of it belongs to this driver
        view.show(board)
        best.log()
        board.folder.save(seconds=spent + time.time() - began)
        shutil.rmtree(scratch, ignore_errors=True)


class _Preparation:
    """Turns a trial into what its driver gets."""

    def __init__(self, space: Space, rows: _Rows, trials: Trials) -> None:
        self._space, self._rows, self._trials = space, rows, trials

    def config(self, trial: Trial) -> dict[str, Any]:
        job = self._space.trial_job(trial.values)
        own = _reading(job) != _reading(self._rows.job)
        if not own:
            found = self._rows.fitted.tasks
            tasks = {n: found[n].model_copy(update={"weight": t.weight}) for n, t in job.tasks.items()}
            job = job.model_copy(update={"tasks": tasks})
        # Ray Train would try again what cannot heal, as a loss of NaN; Tune tries again what may.
        job = job.model_copy(update={"compute": job.compute.model_copy(update={"max_failures": 0})})
        run = self._trials.run(trial)
        run.make()
        run.write("job.json", job.model_dump_json(indent=1))
        trial.state = "running"
        self._trials.save(trial)
        return {
            "number": trial.number,
            "job": job.model_dump_json(),
            "url": run.url,
            "metric": self._space.sweep.metric,
            "own_rows": own,
        }


def _reading(job: Job) -> dict[str, Any]:
    """The parts of a job that decide which of its rows can be used, and what is noted of them."""
    tasks = {name: task.model_dump(exclude={"weight"}) for name, task in job.tasks.items()}
    inputs = {
        name: options.model_dump(exclude={"encoder", "augment"}) for name, options in job.inputs.items()
    }
    noted = {"group_by_length": job.train.group_by_length}
    return {"data": job.data.model_dump(exclude={"cache"}), "inputs": inputs, "tasks": tasks, **noted}


def _budget_left(space: Space, folder: RunFolder) -> float | None:
    """Seconds that trials may still take; None without a budget."""
    budget = space.sweep.budget
    return None if budget is None else max(0.0, budget - folder.status.seconds)


def _tuner(
    space: Space,
    rows: _Rows,
    suggestions: Any,
    recorder: Any,
    concurrency: int,
    budget: float | None,
    board: Leaderboard,
    scratch: str,
) -> Any:
    from ray import tune

    from rayfuse.tune.driver import drive

    trainable = tune.with_parameters(drive, splits=rows.dataset.splits)
    return tune.Tuner(
        # A driver that held a CPU could keep it from its own workers. It must name something: a byte of memory.
        tune.with_resources(trainable, {"memory": 1}),
        tune_config=tune.TuneConfig(
            search_alg=suggestions,
            scheduler=_scheduler(space, board.trials),
            num_samples=suggestions.count,
            max_concurrent_trials=concurrency,
            time_budget_s=budget,
        ),
        # Tune's own state is pickled, so it is not kept; ours is in the folder of the sweep.
        run_config=tune.RunConfig(
            name="tune",
            storage_path=scratch,
            verbose=0,
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=space.job.compute.max_failures),
        ),
    )


def _scheduler(space: Space, trials: Trials) -> Any:
    """Tune's scheduler, told of the trials that have ended already."""
    options = space.sweep.scheduler
    if not isinstance(options, AshaScheduler):
        return None
    from ray.tune.schedulers import ASHAScheduler

    from rayfuse.tune.driver import EPOCH, VALUE

    longest = max(space.trial_job(values).train.epochs for values in space.combinations())
    scheduler = ASHAScheduler(
        time_attr=EPOCH,
        metric=VALUE,
        mode=space.mode,
        max_t=longest,
        grace_period=min(options.grace, longest),
        reduction_factor=options.reduction,
        stop_last_trials=False,  # the last epoch is followed by the outcome
    )
    for trial in trials:
        if trial.ended:
            known: Any = SimpleNamespace(trial_id=f"ended-{trial.number}")
            nobody: Any = None
            scheduler.on_trial_add(nobody, known)
            for epoch, metrics in enumerate(trial.history, start=1):
                scheduler.on_trial_result(nobody, known, {EPOCH: epoch, VALUE: metrics[space.sweep.metric]})
    return scheduler


class _Tuning:
    """`tuner.fit()` in a thread, so that the main thread can show the table and hear Ctrl-C."""

    def __init__(self, tuner: Any) -> None:
        self._tuner = tuner
        self.error: BaseException | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, name="tune", daemon=True).start()

    def _run(self) -> None:
        try:
            self._tuner.fit()
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            self.error = error
        finally:
            self._done.set()

    def wait(self, seconds: float) -> bool:
        return self._done.wait(seconds)


class _BestSoFar:
    """Logs the best value to the sweep's own run whenever a trial has ended."""

    def __init__(self, space: Space, board: Leaderboard, parent: Tracker) -> None:
        self._metric, self._board, self._parent = space.sweep.metric, board, parent
        self._logged = 0

    def log(self) -> bool:
        """Whether a trial has ended since the last time."""
        best, ended = self._board.best(), self._board.ended
        if ended == self._logged:
            return False
        self._logged = ended
        value = None if best is None else self._board.value(best)
        if value is not None:
            self._parent.log([launch.record(ended, {f"best/{self._metric}": value})])
        return True


def send_rest(trials: Trials, track: Callable[[Trial], Tracker]) -> None:
    """Send what MLflow lacks of the trials that ended while it was away. Raises NotReachable where it still is."""
    from rayfuse.tune.recorder import finish

    for trial in trials:
        if trial.ended and not trial.sent:
            tracker = track(trial)
            trial.run_id = tracker.run_id
            trials.save(trial)
            tracker.resend()
            trial.sent = finish(tracker, trial)
            trials.save(trial)


def _report(board: Leaderboard, parent: Tracker) -> None:
    """Write leaderboard, winner and pictures. Raises RayfuseError where there is no winner."""
    folder = board.folder
    folder.write(_LEADERBOARD, json.dumps(board.data(), indent=1))
    best = board.best()
    if best is None:
        raise RayfuseError(
            f"no trial came to a result; {board.first_error()}; all are in {folder.url}; --fresh tries again"
        )
    folder.write(_BEST, board.winner(best).model_dump_json(indent=1))
    with tempfile.TemporaryDirectory(prefix="rayfuse-") as scratch:
        local = Path(scratch)
        save_pictures(local / "pictures", board)
        folder.upload(local / "pictures", "pictures")
        for name in (_LEADERBOARD, _BEST):
            (local / name).write_text(folder.read(name) or "", encoding="utf-8")
            parent.artifact(local / name)
        parent.artifact(local / "pictures", "pictures")
        parent.flush()
