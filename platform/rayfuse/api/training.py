"""Training of a job to a registered model version."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.api.presets import with_preset
from rayfuse.api.specs import as_local_job
from rayfuse.console import show_log
from rayfuse.formatting import format_cross_validation, metric_table, without_averages
from rayfuse.spec.job import Job

if TYPE_CHECKING:
    from rayfuse.api.models import Model
    from rayfuse.spec.quality import Quality
    from rayfuse.training.runs import RunFolder

Resume = bool | Callable[[str], bool]
"""Choice to resume an unfinished run of the same job and data; a function decides by the URL of its folder."""


@dataclass(frozen=True)
class TrainResult:
    """Result of a training run. `print` shows its metrics as text; a notebook shows a table."""

    run_id: str
    """MLflow run."""
    model: str
    """Name of the registered model."""
    version: int
    """Version of the registered model, which has the alias `candidate`."""
    metrics: dict[str, float]
    """Metrics of the best checkpoint as TASK/METRIC, on the split `evaluated_on`."""
    evaluated_on: str
    """Split of `metrics`: `test`, or `validation` if the job has no test rows."""
    by_inputs: dict[str, dict[str, float]]
    """The same metrics with every subset of the inputs, such as `image+text`."""
    validation: dict[str, float]
    """Validation metrics of the best checkpoint."""
    selection_metric: str
    """Validation metric that selected the best epoch."""
    best_epoch: int
    """Epoch whose weights are used, from 1: the best, or the last with `train.load_best_model_at_end: false`."""
    epochs: int
    """Number of epochs that were trained."""
    stop_reason: str
    """Why training ended: all epochs are done, early stopping, or the time budget."""
    checkpoint: str
    """URL of the best checkpoint."""
    run: str
    """URL of the run's folder."""
    seconds: float
    """Duration."""
    folds: list[dict[str, float]] = field(default_factory=list, repr=False)
    """Test metrics of each fold, with `data.folds`."""
    cross_validation: dict[str, dict[str, float]] = field(default_factory=dict)
    """`mean` and sample standard deviation `std` of each metric of `folds`."""
    tracking_uri: str | None = field(default=None, repr=False)
    """Tracking URI of the job's MLflow; None: that of the environment."""

    @property
    def uri(self) -> str:
        """URI of the registered version, `models:/NAME/VERSION`."""
        return f"models:/{self.model}/{self.version}"

    def load_model(self) -> "Model":
        """Load the registered version, as `rayfuse.load_model` does."""
        from rayfuse.api.models import load_model

        return load_model(self.uri, tracking_uri=self.tracking_uri)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON."""
        content = asdict(self)
        del content["tracking_uri"]
        return content

    def __str__(self) -> str:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in without_averages(self.metrics).items())
        validated = (
            format_cross_validation(self.cross_validation, len(self.folds)) + "\n" if self.folds else ""
        )
        return (
            f"{validated}{self.evaluated_on}: {metrics}\n{metric_table(self.by_inputs)}\n"
            f"registered {self.model} version {self.version} as candidate in {self.seconds:.0f} s"
        )

    def _repr_html_(self) -> str:
        import pandas as pd

        shown = {name: without_averages(metrics) for name, metrics in self.by_inputs.items()}
        validated = (
            f"<p>{escape(format_cross_validation(self.cross_validation, len(self.folds)))}</p>"
            if self.folds
            else ""
        )
        return (
            f"{validated}<p>{self.model} version {self.version}, {self.evaluated_on} metrics by inputs</p>"
            + pd.DataFrame(shown).T.to_html(float_format="%.4f")
        )


def train(
    job: "Job | Mapping[str, Any] | str | Path",
    *,
    quality: "Quality | None" = None,
    resume: Resume = True,
    profile_steps: int = 0,
    verbose: bool = True,
    **overrides: Any,
) -> TrainResult:
    """Train a job on Ray, evaluate it, log it to MLflow, and register the model as `candidate`.

    A Ray that is already running in this process is used and left as it was; RAY_ADDRESS names a cluster; otherwise Ray
    is started on this machine and stopped at the end. Rows in memory are written to `output.storage` first.

    Args:
        job: The path or URL of a YAML file, a Job, or a dict.
        quality: `fast`, `medium` or `best`: choose the values of keys that the job leaves out by its data and this
            machine. They are logged, and stored with the run.
        resume: Whether to resume an unfinished run of the same job and data, or a function that decides by its URL.
        profile_steps: Number of steps to profile: a trace and a table of operators in the run's folder.
        verbose: Show log lines and progress, unless the application has configured logging.
        **overrides: Values of the spec by path, as in `**{"train.epochs": 3}`.

    Raises:
        SpecError: The job is invalid. DataError: Its rows cannot be used.
        ResourceError: The workers do not fit on the cluster, or the storage cannot be written.
        UnavailableError: MLflow or the cluster does not respond.
        RunInterruptedError: Ctrl-C, or the interrupted kernel of a notebook; the same call resumes the run.
        RayfuseError: Training failed, as with a NaN loss.
    """
    spec_file = str(job) if isinstance(job, (str, Path)) else None
    with show_log(verbose):
        return train_job(
            as_local_job(job, overrides, ("quality", "resume", "profile_steps", "verbose")),
            spec_file,
            resume,
            profile_steps,
            quality,
        )


def train_job(
    job: Job,
    spec_file: str | None = None,
    resume: Resume = True,
    profile_steps: int = 0,
    quality: "Quality | None" = None,
) -> TrainResult:
    """Train a job as `train` does. `spec_file` is the file that it came from, for MLflow."""
    from rayfuse.data.tables import store_tables
    from rayfuse.pipeline import train_and_register
    from rayfuse.registry.mlflow_connection import resolve_tracking_uri

    started = time.perf_counter()
    job = with_preset(store_tables(job), quality)
    trained = train_and_register(job, confirm_resume(resume), spec_file, profile_steps)
    tracking_uri = resolve_tracking_uri(job.output.tracking_uri, job.output.storage)
    seconds = round(time.perf_counter() - started, 1)
    return TrainResult(**trained, seconds=seconds, tracking_uri=tracking_uri)


def confirm_resume(resume: Resume) -> "Callable[[RunFolder], bool]":
    """Return a function that decides whether to resume the run in a folder."""
    return (lambda run: resume(run.url)) if callable(resume) else (lambda run: resume)
