"""Training of a job to a registered model version."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.api.specs import as_spec
from rayfuse.console import show_log
from rayfuse.formatting import metric_table
from rayfuse.spec.job import Job

if TYPE_CHECKING:
    from rayfuse.api.models import Model
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
    checkpoint: str
    """URL of the best checkpoint."""
    run: str
    """URL of the run's folder."""
    seconds: float
    """Duration."""
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
        shown = {name: value for name, value in self.metrics.items() if not name.endswith(_AVERAGES)}
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        return (
            f"{self.evaluated_on}: {metrics}\n{metric_table(self.by_inputs)}\n"
            f"registered {self.model} version {self.version} as candidate in {self.seconds:.0f} s"
        )

    def _repr_html_(self) -> str:
        import pandas as pd

        table = pd.DataFrame(self.by_inputs).T
        shown = table[[name for name in table if not name.endswith(_AVERAGES)]]
        return (
            f"<p>{self.model} version {self.version}, {self.evaluated_on} metrics by inputs</p>"
            + shown.to_html(float_format="%.4f")
        )


_AVERAGES = ("_micro", "_macro", "_weighted")


def train(
    job: "Job | Mapping[str, Any] | str | Path",
    *,
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
            as_spec(job, Job, overrides, ("resume", "profile_steps", "verbose")),
            spec_file,
            resume,
            profile_steps,
        )


def train_job(
    job: Job, spec_file: str | None = None, resume: Resume = True, profile_steps: int = 0
) -> TrainResult:
    """Train a job as `train` does. `spec_file` is the file that it came from, for MLflow."""
    from rayfuse.data.tables import store_tables
    from rayfuse.pipeline import train_and_register
    from rayfuse.registry.mlflow_connection import resolve_tracking_uri

    started = time.perf_counter()
    job = store_tables(job)
    trained = train_and_register(job, confirm_resume(resume), spec_file, profile_steps)
    tracking_uri = resolve_tracking_uri(job.output.tracking_uri, job.output.storage)
    seconds = round(time.perf_counter() - started, 1)
    return TrainResult(**trained, seconds=seconds, tracking_uri=tracking_uri)


def confirm_resume(resume: Resume) -> "Callable[[RunFolder], bool]":
    """Return a function that decides whether to resume the run in a folder."""
    return (lambda run: resume(run.url)) if callable(resume) else (lambda run: resume)
