"""Hyperparameter sweeps on Ray Tune."""

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.api.memory import check_this_machine
from rayfuse.api.specs import as_spec
from rayfuse.api.training import Resume, TrainResult, confirm_resume, train_job
from rayfuse.console import show_log
from rayfuse.formatting import table
from rayfuse.spec.custom_parts import check_custom_parts
from rayfuse.spec.job import Job
from rayfuse.spec.sweep import Sweep

if TYPE_CHECKING:
    import pandas as pd

    from rayfuse.tuning.leaderboard import Leaderboard

_PARAMETERS = ("resume", "register_best", "verbose")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BestTrial:
    """The best trial of a sweep."""

    trial: int
    """Number of the trial."""
    value: float
    """The sweep's metric in its best epoch, on the validation rows."""
    values: dict[str, Any]
    """Searched values by path of the job."""
    job: Job
    """The complete job with these values, for `rayfuse.train`."""
    run_id: str | None
    """MLflow run of the trial."""


@dataclass(frozen=True)
class SweepResult:
    """Result of a sweep. `print` shows the leaderboard as text."""

    metric: str
    """Metric of the sweep."""
    mode: str
    """`max` or `min`."""
    best: BestTrial
    """The best trial."""
    folder: str
    """URL of the sweep's folder, with plots, `leaderboard.json` and `best.json`, the best trial's job."""
    run_id: str | None
    """Parent run in MLflow."""
    seconds: float
    """Duration."""
    registered: TrainResult | None
    """Result of training the best trial's job in full; None without `register_best`."""
    board: "Leaderboard" = field(repr=False)
    """All trials."""

    @property
    def leaderboard(self) -> "pd.DataFrame":
        """All trials, the best first: `trial`, `state`, the metric, `epochs`, `seconds`, and each searched value by path."""
        import pandas as pd

        trials = self.board.to_dict()["trials"]
        rows = [
            {
                "trial": trial["trial"],
                "state": trial["state"],
                self.metric: trial["value"],
                "epochs": trial["epochs"],
                "seconds": trial["seconds"],
                **trial["values"],
                "run_id": trial["run_id"],
                "error": trial["error"],
            }
            for trial in trials
        ]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON."""
        content = self.board.to_dict() | {"seconds": self.seconds}
        return content | ({"registered": self.registered.to_dict()} if self.registered else {})

    def __str__(self) -> str:
        from rayfuse.tuning.console import header, row

        lines = [
            table(header(self.board), [row(self.board, trial) for trial in self.board.ranked]),
            f"best: trial {self.best.trial}, {self.metric} {self.best.value:.4f} on the validation rows",
            f"plots and leaderboard: {self.folder}",
        ]
        if self.registered is not None:
            value = self.registered.metrics[self.metric]
            lines.append(f"{self.registered.evaluated_on}: {self.metric} {value:.4f}")
            lines.append(f"registered {self.registered.model} version {self.registered.version} as candidate")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return str(self.leaderboard.to_html(index=False, float_format="%.4g", na_rep=""))


def tune(
    sweep: "Sweep | Mapping[str, Any] | str | Path",
    *,
    resume: Resume = True,
    register_best: bool = False,
    verbose: bool = True,
    **overrides: Any,
) -> SweepResult:
    """Run the trials of a sweep on Ray Tune, and rank them by the validation metric.

    A Ray that is already running in this process is used and left as it was, as by `rayfuse.train`.

    Args:
        sweep: The path or URL of a YAML file, a Sweep (whose `job` may be a Job), or a dict.
        resume: Whether to resume an unfinished sweep of the same spec and data, or a function that decides by its URL.
        register_best: Train the best trial's job in full, and register the model as `candidate`.
        verbose: Show log lines and progress, unless the application has configured logging.
        **overrides: Values of the sweep by path, as in `**{"search.trials": 20}`.

    Raises:
        SpecError: The sweep, or a combination of its values, is invalid or needs more memory than this machine has.
        RayfuseError: Every trial failed. Others as `rayfuse.train`.
        RunInterruptedError: Ctrl-C, or the interrupted kernel of a notebook; the same call resumes the sweep.
    """
    from rayfuse.spec.search_space import search_space
    from rayfuse.tuning.console import create_reporter
    from rayfuse.tuning.sweep import run_sweep

    started = time.perf_counter()
    with show_log(verbose):
        where = str(sweep) if isinstance(sweep, (str, Path)) else "Sweep"
        space = search_space(_with_stored_job(as_spec(sweep, Sweep, overrides, _PARAMETERS)), where)
        check_custom_parts(space.job, f"{where}: job")
        check_this_machine(space, where)
        reuse_finished = register_best and resume is not False
        reporter = create_reporter(_log.info, sys.stderr)
        board = run_sweep(space, confirm_resume(resume), _log.info, reporter, where, reuse_finished)
        registered = _register(board, where) if register_best else None
    return _to_result(board, registered, time.perf_counter() - started)


def _to_result(board: "Leaderboard", registered: TrainResult | None, seconds: float) -> SweepResult:
    """Return the result of a sweep that has ended."""
    best = board.best()
    assert best is not None
    value = board.value(best)
    assert value is not None
    return SweepResult(
        metric=board.space.sweep.metric,
        mode=board.space.mode,
        best=BestTrial(best.number, value, dict(best.values), board.winner(best), best.run_id),
        folder=board.folder.url,
        run_id=board.folder.status.mlflow_run_id,
        seconds=round(seconds, 1),
        registered=registered,
        board=board,
    )


def _with_stored_job(sweep: Sweep) -> Sweep:
    """Return the sweep; rows in memory of its job are stored."""
    if not isinstance(sweep.job, Job):
        return sweep
    from rayfuse.data.tables import store_tables

    return sweep.model_copy(update={"job": store_tables(sweep.job)})


def _register(board: "Leaderboard", where: str) -> TrainResult:
    """Train the best trial's job in full, or resume that, and register the model."""
    best = board.best()
    assert best is not None
    _log.info("training the job of the best trial, %d, in full", best.number)
    registered = train_job(board.winner(best), where)
    board.folder.save(version=registered.version)
    return registered
