"""Which trials are best: for people a table, for programs JSON."""

from typing import Any

from rayfuse.spec.job import Job
from rayfuse.spec.space import Space, draws
from rayfuse.train.runs import RunFolder
from rayfuse.tune.trials import Trial, Trials, ranked


class Leaderboard:
    """The trials of a sweep, the best first. It looks at them anew whenever it is asked."""

    def __init__(self, space: Space, trials: Trials, folder: RunFolder) -> None:
        self.space, self.trials, self.folder = space, trials, folder
        self.wanted = draws(space)

    @property
    def ranked(self) -> list[Trial]:
        return ranked(self.trials, self.space.sweep.metric, self.space.mode)

    @property
    def ended(self) -> int:
        return sum(trial.ended for trial in self.trials)

    def value(self, trial: Trial) -> float | None:
        """The sweep's metric in the trial's best epoch."""
        return trial.best(self.space.sweep.metric, self.space.mode)

    def best(self) -> Trial | None:
        """The best trial that has not failed; None where none has a value."""
        good = (t for t in self.ranked if t.ended and t.state != "failed" and self.value(t) is not None)
        return next(good, None)

    def winner(self, best: Trial) -> Job:
        """The whole job with the values of the best trial."""
        return self.space.winner(best.values)

    def first_error(self) -> str:
        """Why the first of the failed trials failed."""
        failed = [trial for trial in self.trials if trial.error]
        return f"trial {failed[0].number}: {failed[0].error}" if failed else "none had time for an epoch"

    def rate(self) -> float | None:
        """Trials per hour of the time spent; None before any has ended."""
        seconds = self.folder.status.seconds
        return 3600 * self.ended / seconds if self.ended and seconds else None

    def data(self) -> dict[str, Any]:
        """All of it as JSON: the best trial's spec, metric and run, and every trial."""
        best = self.best()
        return {
            "sweep": self.folder.url,
            "run_id": self.folder.status.tracking_run,
            "metric": self.space.sweep.metric,
            "mode": self.space.mode,
            "best": None
            if best is None
            else {**self._entry(best), "spec": self.winner(best).model_dump(mode="json")},
            "trials": [self._entry(trial) for trial in self.ranked],
            "trials_per_hour": self.rate(),
        }

    def _entry(self, trial: Trial) -> dict[str, Any]:
        return {
            "trial": trial.number,
            "state": trial.state,
            "value": self.value(trial),
            "epochs": len(trial.history),
            "seconds": round(trial.seconds, 1),
            "overhead": trial.overhead,
            "values": trial.values,
            "run_id": trial.run_id,
            "error": trial.error,
        }
