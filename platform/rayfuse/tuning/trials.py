"""State of the trials of a sweep, stored in the folder of the sweep, from which any driver can resume.

STORAGE/SWEEP/RUN/run.json                    status of the sweep, MLflow run, registered version
STORAGE/SWEEP/RUN/sweep.json                  the resolved sweep
STORAGE/SWEEP/RUN/trials/0001/trial.json      a trial: its values, state and validation metrics
STORAGE/SWEEP/RUN/trials/0001/job.json        the job of the trial
STORAGE/SWEEP/RUN/trials/0001/metrics.jsonl   all metrics, in order
STORAGE/SWEEP/RUN/trials/0001/checkpoints/    best and last checkpoint
STORAGE/SWEEP/RUN/leaderboard.json, plots/
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Literal

import fsspec

from rayfuse.spec.search_space import Values
from rayfuse.spec.tasks import Mode
from rayfuse.training.runs import RunFolder, RunStatus

State = Literal["running", "finished", "stopped", "failed"]
"""State of a trial. `stopped`: by the scheduler or the time budget; `running`: also after its driver has died."""

JOURNAL = "metrics.jsonl"
_FILE = "trial.json"


@dataclass
class Trial:
    """One trial, stored as `trial.json`."""

    number: int
    """Number of the trial, from 1."""
    values: Values
    """Value of each searched parameter by its path."""
    state: State = "running"
    """State of the trial."""
    run_id: str | None = None
    """ID of its MLflow run."""
    sent: bool = False
    """True if MLflow has all of its metrics."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Validation metrics by epoch."""
    seconds: float = 0.0
    """Seconds from its suggestion until its last report, over all drivers."""
    startup_seconds: float | None = None
    """Seconds from its suggestion until its first optimizer step."""
    error: str | None = None
    """Reason of its failure."""
    out_of_memory: bool = False
    """True if it failed because memory was exhausted."""

    @property
    def ended(self) -> bool:
        """True if the trial is no longer running."""
        return self.state != "running"

    def best_value(self, metric: str, mode: Mode) -> float | None:
        """Return the metric in the trial's best epoch; None before the first epoch."""
        values = [epoch[metric] for epoch in self.history if epoch.get(metric) is not None]
        return (max if mode == "max" else min)(values) if values else None


class Trials:
    """Trials of a sweep, in memory and in its folder."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._known = {trial.number: trial for trial in _read(folder)}

    def __iter__(self) -> Iterator[Trial]:
        return iter(sorted(self._known.values(), key=lambda trial: trial.number))

    def __len__(self) -> int:
        return len(self._known)

    def get(self, number: int) -> Trial | None:
        """Return the trial of this number; None if there is none."""
        return self._known.get(number)

    def run_folder(self, trial: Trial) -> RunFolder:
        """Return the folder of a trial."""
        name = f"{trial.number:04d}"
        return RunFolder(self.folder.path(f"trials/{name}"), RunStatus(name, self.folder.status.fingerprint))

    def save(self, trial: Trial) -> None:
        """Add or replace a trial, and write its `trial.json`."""
        self._known[trial.number] = trial
        self.run_folder(trial).write(_FILE, json.dumps(asdict(trial), indent=1))


def rank_trials(trials: Iterable[Trial], metric: str, mode: Mode) -> list[Trial]:
    """Sort trials by their best value, the best first; those without a value last, by number."""
    sign = -1 if mode == "max" else 1

    def rank(trial: Trial) -> tuple[bool, float, int]:
        value = trial.best_value(metric, mode)
        return value is None, sign * (value or 0.0), trial.number

    return sorted(trials, key=rank)


def _read(folder: RunFolder) -> Iterable[Trial]:
    fs, path = fsspec.url_to_fs(folder.path("trials"))
    fs.invalidate_cache()
    for file in fs.glob(f"{path}/*/{_FILE}"):
        # A file that was cut off while it was written, or of another version: the trial starts again.
        with suppress(ValueError, TypeError):
            yield Trial(**json.loads(fs.cat_file(file)))
