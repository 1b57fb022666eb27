"""MLflow runs of a sweep: a parent run, and a nested run for each trial."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from rayfuse.registry.tracker import Status, Tracker
from rayfuse.spec.job import Job
from rayfuse.spec.search_space import SearchSpace
from rayfuse.spec.sweep import Sweep
from rayfuse.training import launch
from rayfuse.training.runs import RunFolder
from rayfuse.tuning.leaderboard import Leaderboard
from rayfuse.tuning.trials import JOURNAL, State, Trial, Trials

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRIAL_TAG = "rayfuse.trial"
TRIAL_STATE_TAG = "rayfuse.trial.state"
TRIAL_ERROR_TAG = "rayfuse.trial.error"

_RUN_STATUS: dict[State, Status] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""Status of an MLflow run by the state of its trial."""


class MlflowRuns:
    """The parent run of a sweep, and the runs of its trials."""

    def __init__(
        self,
        space: SearchSpace,
        client: "MlflowClient",
        trials: Trials,
        spec_file: str,
        log: Callable[[str], None],
    ) -> None:
        self._space, self._client, self._trials = space, client, trials
        self._spec_file, self._log = spec_file, log
        folder = trials.folder
        self.parent_run = self._start(
            space.sweep, folder, folder.title(space.sweep.name), folder.status.mlflow_run_id
        )
        self.parent_run.resend()

    def start_trial(self, trial: Trial) -> Tracker:
        """Open the run of a trial, or create it. Raises UnavailableError if MLflow is down."""
        run = self._trials.run_folder(trial)
        name = f"{self._space.sweep.name} trial {trial.number}"
        job = self._space.trial_job(trial.values)
        return self._start(job, run, name, trial.run_id, self.parent_run.run_id)

    def send_pending(self) -> None:
        """Send what MLflow lacks of ended trials. Raises UnavailableError if MLflow is down."""
        send_pending_trials(self._trials, self.start_trial)

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
            self._log,
            experiment=self._space.job.experiment_name,
            parent_run_id=parent,
        )


def send_pending_trials(trials: Trials, start_tracker: Callable[[Trial], Tracker]) -> None:
    """Send what MLflow lacks of trials that ended while it was down. Raises UnavailableError if it still is."""
    for trial in trials:
        if trial.ended and not trial.sent:
            tracker = start_tracker(trial)
            trial.run_id = tracker.run_id
            trials.save(trial)
            tracker.resend()
            trial.sent = finish_run(tracker, trial)
            trials.save(trial)


def finish_run(tracker: Tracker, trial: Trial) -> bool:
    """End the trial's run; return whether MLflow has all of it. Raises UnavailableError as `Tracker.finish` does."""
    tracker.set_tag(TRIAL_TAG, str(trial.number))
    tracker.set_tag(TRIAL_STATE_TAG, trial.state)
    if trial.error:
        tracker.set_tag(TRIAL_ERROR_TAG, trial.error)
    return tracker.finish(_RUN_STATUS[trial.state])


class BestValueLogger:
    """Logs the best value so far to the sweep's run, as `best/METRIC` over the number of ended trials."""

    def __init__(self, board: Leaderboard, parent_run: Tracker) -> None:
        self._board, self._parent_run = board, parent_run
        self._logged = 0

    def log_if_changed(self) -> bool:
        """Log the best value if a trial has ended since the last call; return whether one has."""
        best, ended = self._board.best(), self._board.num_ended
        if ended == self._logged:
            return False
        self._logged = ended
        value = None if best is None else self._board.value(best)
        if value is not None:
            self._parent_run.log([launch.make_record(ended, {self._board.best_metric: value})])
        return True
