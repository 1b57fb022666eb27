"""Ranking of the trials of a sweep."""

from typing import TYPE_CHECKING, Any

from rayfuse.spec.job import Job
from rayfuse.spec.search_space import SearchSpace, num_trials
from rayfuse.training.runs import RunFolder
from rayfuse.tuning.trials import Trial, Trials, rank_trials

if TYPE_CHECKING:
    from ray.tune import ResultGrid


class Leaderboard:
    """The trials of a sweep, ranked by their best epoch. Every property reflects the current state of the trials."""

    results: "ResultGrid | None" = None
    """Ray Tune's results of the trials that this process ran; None before they have ended.

    `get_best_result()` is the best trial of these, and `get_dataframe()` has a row per trial with the validation metrics
    of its last epoch, its `state`, its `summary`, and its best value as `best/METRIC`.
    """

    def __init__(self, space: SearchSpace, trials: Trials, folder: RunFolder) -> None:
        self.space, self.trials, self.folder = space, trials, folder
        self.num_trials = num_trials(space)

    @property
    def best_metric(self) -> str:
        """Name of the best value so far, in MLflow and in Ray Tune's results: `best/METRIC`."""
        return f"best/{self.space.sweep.metric}"

    @property
    def ranked(self) -> list[Trial]:
        """All trials, the best first; those without a value last, by number."""
        return rank_trials(self.trials, self.space.sweep.metric, self.space.mode)

    @property
    def num_ended(self) -> int:
        """Number of trials that are no longer running."""
        return sum(trial.ended for trial in self.trials)

    def value(self, trial: Trial) -> float | None:
        """Return the sweep's metric in the trial's best epoch; None before the first epoch."""
        return trial.best_value(self.space.sweep.metric, self.space.mode)

    def best(self) -> Trial | None:
        """Return the best ended trial that has not failed; None if no such trial has a value."""
        good = (t for t in self.ranked if t.ended and t.state != "failed" and self.value(t) is not None)
        return next(good, None)

    def winner(self, best: Trial) -> Job:
        """Return the complete job with the values of a trial."""
        return self.space.build_job(best.values)

    def first_error(self) -> str:
        """Return why the first of the failed trials failed."""
        failed = [trial for trial in self.trials if trial.error]
        return f"trial {failed[0].number}: {failed[0].error}" if failed else "no trial completed an epoch"

    def trials_per_hour(self) -> float | None:
        """Return ended trials per hour of the time spent; None before the first has ended."""
        seconds = self.folder.status.trial_seconds
        return 3600 * self.num_ended / seconds if self.num_ended and seconds else None

    def to_dict(self) -> dict[str, Any]:
        """Return the leaderboard as JSON: the best trial with its job and MLflow run, and every trial."""
        best = self.best()
        return {
            "sweep": self.folder.url,
            "run_id": self.folder.status.mlflow_run_id,
            "metric": self.space.sweep.metric,
            "mode": self.space.mode,
            "best": None
            if best is None
            else {**self._entry(best), "spec": self.winner(best).model_dump(mode="json")},
            "trials": [self._entry(trial) for trial in self.ranked],
            "trials_per_hour": self.trials_per_hour(),
        }

    def _entry(self, trial: Trial) -> dict[str, Any]:
        return {
            "trial": trial.number,
            "state": trial.state,
            "value": self.value(trial),
            "epochs": len(trial.history),
            "seconds": round(trial.seconds, 1),
            "startup_seconds": trial.startup_seconds,
            "values": trial.values,
            "run_id": trial.run_id,
            "error": trial.error,
        }
