"""Trials of a sweep on Ray Tune: the Tuner, and the thread that runs it."""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ray import tune
from ray.tune.logger import JsonLoggerCallback

from rayfuse.errors import INTERRUPT_EXCEPTIONS, RunInterruptedError
from rayfuse.formatting import plural
from rayfuse.signals import signum_of
from rayfuse.training.checkpoints import list_checkpoints
from rayfuse.training.ray_session import FitThread
from rayfuse.tuning.console import ProgressReporter
from rayfuse.tuning.leaderboard import Leaderboard
from rayfuse.tuning.mlflow_runs import BestValueLogger, MlflowRuns
from rayfuse.tuning.recorder import Recorder
from rayfuse.tuning.scheduler import build_scheduler
from rayfuse.tuning.search import OptunaStrategy, ResumableSearcher, create_strategy
from rayfuse.tuning.stop_flag import StopFlag
from rayfuse.tuning.trial_config import SharedData, TrialConfigBuilder
from rayfuse.tuning.trial_runner import VALUE, run_trial

_LOG = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_EXTRA_SECONDS = 0.5
"""For this much longer than each of them, the trials of an interrupted sweep may save a checkpoint."""
_STOP_SECONDS = 5.0
"""Upper bound of the wait for Ray Tune to end its trials after that."""


class TrialLoop:
    """Runs the remaining trials of a sweep, and records what they report."""

    def __init__(
        self, board: Leaderboard, data: SharedData, runs: MlflowRuns, log: Callable[[str], None]
    ) -> None:
        self._board, self._data, self._runs = board, data, runs
        space, trials = board.space, board.trials
        strategy = create_strategy(space)
        configs = TrialConfigBuilder(space, data, trials)
        self._searcher = ResumableSearcher(
            strategy, trials, configs.build, VALUE, space.mode, configs.estimate_memory
        )
        self._recorder = Recorder(board, self._searcher, strategy, runs.start_trial, log)
        if isinstance(strategy, OptunaStrategy):
            log(f"search: {strategy.n_startup_trials} of {plural(strategy.num_trials, 'trial')} are random")

    def run(self, concurrency: int, reporter: ProgressReporter) -> None:
        """Run up to `concurrency` trials at a time until all have ended or the time budget is spent.

        Sets the leaderboard's `results`. Raises RunInterruptedError on Ctrl-C, SIGTERM and SIGHUP, after a checkpoint of
        each running trial if that takes at most `train.checkpoint.interrupt_timeout` of the job, and what Ray Tune
        raises; no process of a trial is left behind in either case.
        """
        budget = _remaining_budget(self._board)
        if not self._searcher.num_remaining or budget == 0:
            return
        scratch = tempfile.mkdtemp(prefix="rayfuse-tune-")
        stopper, stop_flag = _StopOnRequest(), StopFlag()
        thread = FitThread(self._build_tuner(concurrency, budget, scratch, stopper, stop_flag).fit)
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
        except INTERRUPT_EXCEPTIONS as error:
            self._save_checkpoints(stop_flag, thread)
            self._recorder.close(interrupted=True)
            stopper.request()
            thread.wait(_STOP_SECONDS)
            raise RunInterruptedError(_interrupted_message(self._board), signum_of(error)) from None
        finally:
            stop_flag.remove()
            self._recorder.remove_placement_groups()
            reporter.report(self._board)
            best.log_if_changed()
            folder.save(trial_seconds=spent + time.time() - started)
            shutil.rmtree(scratch, ignore_errors=True)

    def _save_checkpoints(self, stop_flag: StopFlag, thread: FitThread[Any]) -> None:
        """Let the running trials save a checkpoint, and start no others; another signal skips that."""
        with suppress(*INTERRUPT_EXCEPTIONS):
            _LOG.info("interrupted; saving a checkpoint of each running trial")
            self._searcher.close()
            self._recorder.interrupt()
            stop_flag.set()
            timeout = self._board.space.job.train.checkpoint.interrupt_timeout
            deadline = time.monotonic() + timeout + _EXTRA_SECONDS
            while self._recorder.num_active and time.monotonic() < deadline and not thread.wait(0.1):
                pass

    def _build_tuner(
        self,
        concurrency: int,
        budget: float | None,
        scratch: str,
        stopper: tune.Stopper,
        stop_flag: StopFlag,
    ) -> tune.Tuner:
        space = self._board.space
        trainable = tune.with_parameters(run_trial, splits=self._data.dataset.splits, stop_flag=stop_flag)
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


def _interrupted_message(board: Leaderboard) -> str:
    running = [trial for trial in board.trials if not trial.ended]
    saved = sum(bool(list_checkpoints(board.trials.run_folder(trial).url)) for trial in running)
    checkpoints = (
        f"{saved} of {len(running)} running ones have a checkpoint" if running else "none was running"
    )
    return (
        f"interrupted; {board.num_ended} of {plural(board.num_trials, 'trial')} ended and {checkpoints} in "
        f"{board.folder.url}; run the same command again to resume"
    )


def _remaining_budget(board: Leaderboard) -> float | None:
    """Return the seconds that trials may still take; None without a budget."""
    budget = board.space.sweep.time_budget
    return None if budget is None else max(0.0, budget - board.folder.status.trial_seconds)
