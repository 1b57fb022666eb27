"""Trials of a sweep on Ray Tune: the Tuner, its scheduler, and the thread that runs it."""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler

from rayfuse.data.dataset import Dataset
from rayfuse.errors import INTERRUPT_EXCEPTIONS, RunInterruptedError
from rayfuse.spec.job import Job
from rayfuse.spec.search_space import SearchSpace
from rayfuse.spec.sweep import AshaScheduler
from rayfuse.training.ray_session import FitThread
from rayfuse.tuning.console import ProgressReporter
from rayfuse.tuning.leaderboard import Leaderboard
from rayfuse.tuning.mlflow_runs import BestValueLogger, MlflowRuns
from rayfuse.tuning.recorder import Recorder
from rayfuse.tuning.search import ResumableSearcher, create_strategy
from rayfuse.tuning.trial_runner import EPOCH, VALUE, run_trial
from rayfuse.tuning.trials import Trial, Trials

_POLL_SECONDS = 0.5
_STOP_SECONDS = 30.0
"""Upper bound of the wait for Ray Tune to end its trials after Ctrl-C."""


@dataclass
class SharedData:
    """Rows that all trials share."""

    job: Job
    """The job of a trial, as the spec has it."""
    fitted_job: Job
    """The same job after fitting it to the rows."""
    dataset: Dataset
    """The rows, validated for that job."""


class TrialLoop:
    """Runs the remaining trials of a sweep, and records what they report."""

    def __init__(
        self, board: Leaderboard, data: SharedData, runs: MlflowRuns, log: Callable[[str], None]
    ) -> None:
        self._board, self._data, self._runs = board, data, runs
        space, trials = board.space, board.trials
        strategy = create_strategy(space)
        configs = _TrialConfigBuilder(space, data, trials)
        self._searcher = ResumableSearcher(strategy, trials, configs.build, VALUE, space.mode)
        self._recorder = Recorder(board, self._searcher, strategy, runs.start_trial, log)

    def run(self, concurrency: int, reporter: ProgressReporter) -> None:
        """Run up to `concurrency` trials at a time until all have ended or the time budget is spent.

        Sets the leaderboard's `results`. Raises RunInterruptedError on Ctrl-C and SIGTERM, and what Ray Tune raises;
        no process of a trial is left behind in either case.
        """
        budget = _remaining_budget(self._board)
        if not self._searcher.num_remaining or budget == 0:
            return
        scratch = tempfile.mkdtemp(prefix="rayfuse-tune-")
        stopper = _StopOnRequest()
        thread = FitThread(self._build_tuner(concurrency, budget, scratch, stopper).fit)
        best = BestValueLogger(self._board, self._runs.parent_run)
        folder, started = self._board.folder, time.time()
        spent = folder.status.trial_seconds
        try:
            while not thread.wait(_POLL_SECONDS):
                reporter.report(self._board)
                if best.log_if_changed():
                    folder.save(trial_seconds=spent + time.time() - started)
            self._recorder.close(interrupted=thread.error is not None)
            self._board.results = thread.result()
        except INTERRUPT_EXCEPTIONS:
            self._recorder.close(interrupted=True)
            stopper.request()
            thread.wait(_STOP_SECONDS)
            raise RunInterruptedError(f"interrupted; finished trials are saved in {folder.url}") from None
        finally:
            self._recorder.remove_placement_groups()
            reporter.report(self._board)
            best.log_if_changed()
            folder.save(trial_seconds=spent + time.time() - started)
            shutil.rmtree(scratch, ignore_errors=True)

    def _build_tuner(
        self, concurrency: int, budget: float | None, scratch: str, stopper: tune.Stopper
    ) -> tune.Tuner:
        space = self._board.space
        trainable = tune.with_parameters(run_trial, splits=self._data.dataset.splits)
        return tune.Tuner(
            # A driver that reserved a CPU could block its own workers. Tune needs some resource: a byte of memory.
            tune.with_resources(trainable, {"memory": 1}),
            tune_config=tune.TuneConfig(
                metric=self._board.best_metric,
                mode=space.mode,
                search_alg=self._searcher,
                scheduler=build_scheduler(space, self._board.trials),
                num_samples=self._searcher.num_remaining,
                max_concurrent_trials=concurrency,
                time_budget_s=budget,
            ),
            # Tune pickles its own state, so it is deleted; ours is in the folder of the sweep.
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                verbose=0,
                stop=stopper,
                callbacks=[self._recorder, JsonLoggerCallback()],
                failure_config=tune.FailureConfig(max_failures=space.job.compute.max_failures),
            ),
        )


class _StopOnRequest(tune.Stopper):
    """Stops all trials once `request` was called."""

    def __init__(self) -> None:
        self._requested = False

    def request(self) -> None:
        self._requested = True

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._requested


class _TrialConfigBuilder:
    """Builds the configuration that `run_trial` gets."""

    def __init__(self, space: SearchSpace, data: SharedData, trials: Trials) -> None:
        self._space, self._data, self._trials = space, data, trials

    def build(self, trial: Trial) -> dict[str, Any]:
        """Create the trial's folder, mark the trial as running, and return its configuration."""
        job = self._space.trial_job(trial.values)
        reload_data = _data_config(job) != _data_config(self._data.job)
        if not reload_data:
            job = with_fitted_parts(job, self._data.fitted_job)
        # Ray Train would also retry failures that occur again, such as a NaN loss; Tune retries only the others.
        job = job.model_copy(update={"compute": job.compute.model_copy(update={"max_failures": 0})})
        run = self._trials.run_folder(trial)
        run.create()
        run.write("job.json", job.model_dump_json(indent=1))
        trial.state = "running"
        self._trials.save(trial)
        return {
            "number": trial.number,
            "job": job.model_dump_json(),
            "url": run.url,
            "metric": self._space.sweep.metric,
            "reload_data": reload_data,
        }


def build_scheduler(space: SearchSpace, trials: Trials) -> ASHAScheduler | None:
    """Build Ray Tune's scheduler with the results of ended trials; None if trials are never stopped early."""
    options = space.sweep.scheduler
    if not isinstance(options, AshaScheduler):
        return None
    max_epochs = max(space.trial_job(values).train.epochs for values in space.combinations())
    scheduler = _ValueAsha(
        time_attr=EPOCH,
        metric=VALUE,
        mode=space.mode,
        max_t=max_epochs,
        grace_period=min(options.grace_period, max_epochs),
        reduction_factor=options.reduction_factor,
        stop_last_trials=False,  # the summary of a trial follows its last epoch
    )
    for trial in trials:
        if trial.ended:
            replayed: Any = SimpleNamespace(trial_id=f"ended-{trial.number}")
            controller: Any = None
            scheduler.on_trial_add(controller, replayed)
            for epoch, metrics in enumerate(trial.history, start=1):
                result = {EPOCH: epoch, VALUE: metrics[space.sweep.metric]}
                scheduler.on_trial_result(controller, replayed, result)
    return scheduler


class _ValueAsha(ASHAScheduler):
    """ASHA on each epoch's value, while Tune's own metric is the best value so far."""

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True


def _data_config(job: Job) -> dict[str, Any]:
    """Return the parts of a job that decide which rows are valid, and what is stored about them."""
    tasks = {name: task.model_dump(exclude={"weight"}) for name, task in job.tasks.items()}
    inputs = {
        name: options.model_dump(exclude={"encoder", "augment"}) for name, options in job.inputs.items()
    }
    stored = {"group_by_length": job.train.group_by_length}
    return {
        "data": job.data.model_dump(exclude={"feature_cache"}),
        "inputs": inputs,
        "tasks": tasks,
        **stored,
    }


def with_fitted_parts(job: Job, fitted: Job) -> Job:
    """Return the job of a trial with the inputs and tasks of the fitted job, whose data it shares."""
    inputs = {
        name: fitted.inputs[name].model_copy(update={"encoder": options.encoder, "augment": options.augment})
        for name, options in job.inputs.items()
    }
    tasks = {
        name: fitted.tasks[name].model_copy(update={"weight": task.weight})
        for name, task in job.tasks.items()
    }
    return job.model_copy(update={"inputs": inputs, "tasks": tasks})


def _remaining_budget(board: Leaderboard) -> float | None:
    """Return the seconds that trials may still take; None without a budget."""
    budget = board.space.sweep.time_budget
    return None if budget is None else max(0.0, budget - board.folder.status.trial_seconds)
