"""What is known of a sweep's trials, kept where any driver finds it again.

STORAGE/SWEEP/RUN/run.json                    status of the sweep, MLflow run, version of the winner
STORAGE/SWEEP/RUN/sweep.json                  the resolved sweep
STORAGE/SWEEP/RUN/trials/0001/trial.json      a trial: its values, how far it is, what it reached
STORAGE/SWEEP/RUN/trials/0001/job.json        the job that it trains
STORAGE/SWEEP/RUN/trials/0001/metrics.jsonl   everything measured, in order
STORAGE/SWEEP/RUN/trials/0001/checkpoints/    best and last checkpoint
STORAGE/SWEEP/RUN/leaderboard.json, pictures/
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Literal

import fsspec

from rayfuse.spec.space import Values
from rayfuse.spec.tasks import Mode
from rayfuse.train.runs import RunFolder, RunStatus

State = Literal["running", "finished", "stopped", "failed"]
"""`stopped`: by the scheduler or the budget, as worse than others; `running` also of a trial whose driver died."""

JOURNAL = "metrics.jsonl"
_FILE = "trial.json"


@dataclass
class Trial:
    """One trial, as `trial.json` holds it."""

    number: int
    values: Values
    state: State = "running"
    run_id: str | None = None
    """Its run in MLflow."""
    sent: bool = False
    """Whether MLflow has all of it."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Validation metrics by epoch."""
    seconds: float = 0.0
    """From being asked for until its last word, over all drivers."""
    overhead: float | None = None
    """Seconds from being asked for until its first optimizer steps were done."""
    error: str | None = None

    @property
    def ended(self) -> bool:
        return self.state != "running"

    def best(self, metric: str, mode: Mode) -> float | None:
        """The metric in its best epoch; None before the first."""
        values = [epoch[metric] for epoch in self.history if epoch.get(metric) is not None]
        return (max if mode == "max" else min)(values) if values else None


class Trials:
    """All trials of a sweep, in memory and in its folder."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._known = {trial.number: trial for trial in _read(folder)}

    def __iter__(self) -> Iterator[Trial]:
        return iter(sorted(self._known.values(), key=lambda trial: trial.number))

    def __len__(self) -> int:
        return len(self._known)

    def get(self, number: int) -> Trial | None:
        return self._known.get(number)

    def run(self, trial: Trial) -> RunFolder:
        """The trial's own folder."""
        name = f"{trial.number:04d}"
        return RunFolder(self.folder.path(f"trials/{name}"), RunStatus(name, self.folder.status.fingerprint))

    def save(self, trial: Trial) -> None:
        self._known[trial.number] = trial
        self.run(trial).write(_FILE, json.dumps(asdict(trial), indent=1))


def ranked(trials: Iterable[Trial], metric: str, mode: Mode) -> list[Trial]:
    """The best first; those without a value last, by number."""
    sign = -1 if mode == "max" else 1

    def rank(trial: Trial) -> tuple[bool, float, int]:
        value = trial.best(metric, mode)
        return value is None, sign * (value or 0.0), trial.number

    return sorted(trials, key=rank)


def _read(folder: RunFolder) -> Iterable[Trial]:
    fs, path = fsspec.url_to_fs(folder.path("trials"))
    fs.invalidate_cache()
    for file in fs.glob(f"{path}/*/{_FILE}"):
        with suppress(
            ValueError, TypeError
        ):  # cut off while it was written, or of another version: begun anew
            yield Trial(**json.loads(fs.cat_file(file)))
