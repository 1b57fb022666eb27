"""Ray Tune callback that records trials in their folders and in MLflow."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import RLock
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from rayfuse.errors import OutOfMemoryError, UnavailableError
from rayfuse.registry.journal import Journal
from rayfuse.registry.tracker import Tracker
from rayfuse.training.ray_errors import unwrap_error
from rayfuse.training.ray_session import remove_placement_group
from rayfuse.tuning.leaderboard import Leaderboard
from rayfuse.tuning.mlflow_runs import finish_run
from rayfuse.tuning.search import ResumableSearcher, Strategy
from rayfuse.tuning.trial_runner import FAILURE, OUT_OF_MEMORY, RECORDS, SUMMARY, validation_metrics
from rayfuse.tuning.trials import JOURNAL, State, Trial

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

StartTracker = Callable[[Trial], Tracker]
"""Opens the MLflow run of a trial."""


class Recorder(Callback):
    """Records the events of trials, in Tune's thread, until `close`.

    It adds the trial's state and best value so far (`best/METRIC`) to Tune's results, so that these hold what the
    leaderboard does.
    """

    def __init__(
        self,
        board: Leaderboard,
        searcher: ResumableSearcher,
        strategy: Strategy,
        start_tracker: StartTracker,
        log: Callable[[str], None],
    ) -> None:
        self._board, self._trials = board, board.trials
        self._searcher, self._strategy = searcher, strategy
        self._start_tracker, self._log = start_tracker, log
        self._trackers: dict[int, Tracker] = {}
        self._previous_seconds: dict[int, float] = {}
        self._placement_groups: dict[int, str] = {}
        self._started: set[int] = set()
        self._stopped: set[int] = set()
        self._interrupted = False
        self._lock = RLock()
        self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its callbacks for a restore, which Rayfuse does not use."""
        return {}

    def on_trial_start(
        self, iteration: int, trials: "list[TuneTrial]", trial: "TuneTrial", **info: Any
    ) -> None:
        """Open the MLflow run of a trial that starts or resumes."""
        with self._lock:
            if not self._closed:
                known = self._get_trial(trial)
                self._started.add(known.number)
                self._previous_seconds.setdefault(known.number, known.seconds)
                self._tracker(known)

    def on_trial_result(
        self,
        iteration: int,
        trials: "list[TuneTrial]",
        trial: "TuneTrial",
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Save the records of a trial and its state, and send them to MLflow."""
        with self._lock:
            if self._closed:
                return
            known, records = self._get_trial(trial), result.pop(RECORDS, [])
            for record in records:
                self._apply_record(known, record)
            if SUMMARY in result:
                known.history, known.state = result[SUMMARY]["history"], "finished"
            if FAILURE in result:
                known.error, known.state = result[FAILURE], "failed"
                known.out_of_memory = result.get(OUT_OF_MEMORY, False)
            self._save(known)
            result.update(self._tune_columns(known))
            tracker = self._tracker(known)
            if tracker:
                tracker.log(records)
            else:
                journal = Journal(self._trials.run_folder(known).path(JOURNAL))
                journal.append(records)
                journal.close()

    def on_trial_complete(
        self, iteration: int, trials: "list[TuneTrial]", trial: "TuneTrial", **info: Any
    ) -> None:
        """Record the end of a trial that finished or was stopped."""
        with self._lock:
            if not self._closed:
                known = self._get_trial(trial)
                self._stopped.add(known.number)
                if self._interrupted and known.state == "running":
                    return  # it resumes with the next driver
                self._end_trial(known, "stopped" if known.state == "running" else known.state)
                trial.update_last_result({**trial.last_result, **self._tune_columns(known)})

    def on_trial_recover(
        self, iteration: int, trials: "list[TuneTrial]", trial: "TuneTrial", **info: Any
    ) -> None:
        """Log why a trial starts again."""
        with self._lock:
            if not self._closed:
                self._log(f"trial {self._get_trial(trial).number} starts again: {_error_message(trial)}")

    def on_trial_error(
        self, iteration: int, trials: "list[TuneTrial]", trial: "TuneTrial", **info: Any
    ) -> None:
        """Record the error of a failed trial."""
        with self._lock:
            if not self._closed:
                known = self._get_trial(trial)
                known.error = _error_message(trial)
                self._stopped.add(known.number)
                known.out_of_memory = isinstance(_unwrapped_error(trial), OutOfMemoryError)
                self._end_trial(known, "failed")
                trial.update_last_result({**trial.last_result, **self._tune_columns(known)})

    def interrupt(self) -> None:
        """Leave trials that end without a summary from now on to the next driver."""
        with self._lock:
            self._interrupted = True

    @property
    def num_active(self) -> int:
        """Number of trials that neither have ended nor have saved a checkpoint on an interrupt."""
        with self._lock:
            return len(self._started - self._stopped)

    def close(self, interrupted: bool = False) -> None:
        """Ignore all later events. Running trials end as stopped, or, if `interrupted`, resume with the next driver."""
        with self._lock:
            self._closed = True
            killed: list[Tracker] = []
            for number in self._previous_seconds:
                known = self._trials.get(number)
                assert known is not None
                tracker = self._trackers.get(number)
                if known.state == "running" and interrupted:
                    self._save(known)
                    killed += [tracker] if tracker else []
                elif (
                    known.state == "running" or tracker
                ):  # with a tracker, its last report has arrived already
                    self._end_trial(known, "stopped" if known.state == "running" else known.state)
            if killed:
                with ThreadPoolExecutor(len(killed)) as pool:  # each waits for MLflow if that is down
                    list(pool.map(lambda tracker: tracker.finish("KILLED"), killed))

    def remove_placement_groups(self) -> None:
        """End the workers of trials that were interrupted. Call it once Ray Tune has stopped them."""
        with self._lock:
            for number in list(self._placement_groups):
                self._remove_placement_group(number)

    def _get_trial(self, trial: "TuneTrial") -> Trial:
        known = self._trials.get(trial.config["number"])
        assert known is not None
        return known

    def _apply_record(self, trial: Trial, record: dict[str, Any]) -> None:
        if "placement_group" in record:
            self._placement_groups[trial.number] = record["placement_group"]
        if "first_step" in record and trial.startup_seconds is None:
            trial.startup_seconds = record["time"] - self._searcher.suggested_at[trial.number]
        if "stopped" in record:
            self._stopped.add(trial.number)
        if "epoch" in record:
            trial.history[record["epoch"] - 1 :] = [validation_metrics(record)]

    def _tune_columns(self, trial: Trial) -> dict[str, Any]:
        """Return the row of a trial in Tune's results; a failed one has no value, so that it is never the best."""
        value = math.nan if trial.state == "failed" else self._board.value(trial)
        return {"state": trial.state} | ({} if value is None else {self._board.best_metric: value})

    def _remove_placement_group(self, number: int) -> None:
        """End the workers of a trial that was stopped or died, which would otherwise continue to train."""
        group = self._placement_groups.pop(number, None)
        if group is not None:
            remove_placement_group(group)

    def _save(self, trial: Trial) -> None:
        since = self._searcher.suggested_at[trial.number]
        trial.seconds = self._previous_seconds.get(trial.number, 0.0) + time.time() - since
        self._trials.save(trial)

    def _end_trial(self, trial: Trial, state: State) -> None:
        trial.state = state
        self._save(trial)
        self._remove_placement_group(trial.number)
        self._strategy.observe(trial)
        tracker = self._trackers.pop(trial.number, None)
        if tracker is None:
            return
        try:
            trial.sent = finish_run(tracker, trial)
            self._trials.save(trial)
        except UnavailableError as error:
            self._log(f"trial {trial.number}: {error}")

    def _tracker(self, trial: Trial) -> Tracker | None:
        """Return the trial's MLflow run; None while MLflow is down, which then gets everything later."""
        if trial.number not in self._trackers:
            try:
                tracker = self._start_tracker(trial)
            except UnavailableError as error:
                self._log(f"trial {trial.number} is not in MLflow yet: {error}")
                return None
            tracker.resend()
            self._trackers[trial.number] = tracker
            trial.run_id = tracker.run_id
            self._trials.save(trial)
        return self._trackers[trial.number]


def _unwrapped_error(trial: "TuneTrial") -> BaseException | None:
    error = trial.get_error()
    return unwrap_error(error) if error else None


def _error_message(trial: "TuneTrial") -> str:
    error = _unwrapped_error(trial)
    text = "the trial exited without an error message" if error is None else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
