"""Evaluation of a model on rows, with every subset of its inputs."""

import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.console import LiveText, live_text, show_log
from rayfuse.errors import SpecError
from rayfuse.formatting import metric_table, table
from rayfuse.spec.rows import is_table

if TYPE_CHECKING:
    from rayfuse.registry.download import LocalModel

_LOG_INTERVAL_SECONDS = 10.0
_MAX_LABELS = 6
"""Labels with a column of contributions in the text; all are in `to_dict`."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of a model on rows. `print` shows them as text; a notebook shows a table."""

    metrics: dict[str, float]
    """Metrics with all inputs, as TASK/METRIC."""
    by_inputs: dict[str, dict[str, float]]
    """The same metrics with every subset of the inputs, such as `image+text`."""
    rows: int
    """Number of valid rows."""
    invalid: int
    """Number of invalid rows, which were skipped."""
    explain: dict[str, Any] | None = None
    """With `explain`: `tasks` (contributions by input), `attention`, `plots` (paths), and the MLflow run of the plots."""
    folder: Path | None = field(default=None, repr=False)
    """Folder of the plots."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON."""
        content: dict[str, Any] = {
            "metrics": self.metrics,
            "by_inputs": self.by_inputs,
            "rows": self.rows,
            "invalid": self.invalid,
        }
        return content if self.explain is None else {**content, "explain": self.explain}

    def __str__(self) -> str:
        skipped = f", {self.invalid} skipped" if self.invalid else ""
        text = f"{self.rows} rows{skipped}\n{metric_table(self.by_inputs)}"
        return text if self.explain is None else f"{text}\n{format_explanation(self.explain)}"

    def _repr_html_(self) -> str:
        import pandas as pd

        return str(pd.DataFrame(self.by_inputs).T.to_html(float_format="%.4f"))


def evaluate(
    model: "str | Path",
    data: Any,
    *,
    batch_size: int = 64,
    explain: int | None = None,
    plots: str | Path = "plots",
    tracking_uri: str | None = None,
    verbose: bool = True,
) -> EvaluationResult:
    """Compute the metrics of a model on rows with targets, and the same for every subset of its inputs.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a model folder or its URL.
        data: Rows: jsonl, csv or parquet (a file, glob or folder), or a table in memory as `rayfuse.Job` takes.
        batch_size: Rows of a batch.
        explain: Also compute the contribution of each input, and plot the attributions of that many rows.
        plots: Folder for the plots of `explain`, which are also logged to the MLflow run of the model.
        tracking_uri: MLflow for `models:/…`; by default MLFLOW_TRACKING_URI, else `runs/mlflow.db`.
        verbose: Show log lines and progress, unless the application has configured logging.

    Raises:
        SpecError: The model does not exist, or has too many inputs to explain.
        DataError: The rows cannot be read, or too many are invalid.
        UnavailableError: MLflow or a store does not respond.
    """
    from rayfuse.evaluation.evaluate import evaluate_folder
    from rayfuse.registry.download import fetch

    with show_log(verbose):
        local = fetch(str(model), tracking_uri)
        folder = Path(plots)
        with _rows_url(data, local.folder) as url:
            found = evaluate_folder(
                local.folder, url, batch_size, _Progress(), _log.warning, explain=explain, plot_dir=folder
            )
        explanation = None if explain is None else _explanation(found, folder, local, tracking_uri)
    return EvaluationResult(
        found["metrics"], found["by_inputs"], found["rows"], found["invalid"], explanation, folder
    )


def _explanation(
    found: Mapping[str, Any], folder: Path, model: "LocalModel", tracking_uri: str | None
) -> dict[str, Any]:
    """Return the explanation of an evaluation, and log its plots to the MLflow run of the model."""
    from rayfuse.registry.run_artifacts import log_attribution_plots

    saved = found.get("plots", [])
    return {
        "tasks": found["explain"],
        "attention": found.get("attention", {}),
        "plots": [str(path) for path in saved],
        "run_id": log_attribution_plots(folder, model, tracking_uri, _log.warning) if saved else None,
    }


@contextmanager
def _rows_url(data: Any, model: Path) -> Iterator[str]:
    """Yield the URL of rows; a table in memory is written to a temporary file for the inputs of a model."""
    if isinstance(data, (str, Path)):
        yield str(data)
        return
    if not is_table(data):
        raise SpecError(f"data: expected the path or URL of rows or a table, not {type(data).__name__}")
    from rayfuse.data.tables import write_table
    from rayfuse.model.model_io import load_job

    job, _ = load_job(model)
    with tempfile.TemporaryDirectory(prefix="rayfuse-") as folder:
        yield write_table(data, folder, job.inputs, "data")


def format_explanation(explanation: Mapping[str, Any]) -> str:
    """Format the contributions of each input as a table per task, with the folder of the plots."""
    parts = []
    for task, found in explanation["tasks"].items():
        labels = list(found.get("by_label", {}))[:_MAX_LABELS]
        rows = [
            [
                name,
                value,
                found["rows_with"][name],
                *(found["by_label"][label].get(name) for label in labels),
            ]
            for name, value in found["contributions"].items()
        ]
        parts.append(
            f"\n{task}: contributions to the {found['score']} of the prediction, from {found['base_value']:.4g} without "
            f"inputs to {found['value']:.4g}\n"
            + table(["input", "mean absolute", "rows", *(f"for {label}" for label in labels)], rows)
        )
    if explanation["attention"]:
        attention = ", ".join(f"{name} {value:.2f}" for name, value in explanation["attention"].items())
        parts.append(f"\nmean attention over the plotted rows: {attention}")
    if explanation["plots"]:
        logged = f", and in MLflow run {explanation['run_id']}" if explanation["run_id"] else ""
        parts.append(f"\n{len(explanation['plots'])} plots in {Path(explanation['plots'][0]).parent}{logged}")
    return "\n".join(parts)


class _Progress:
    """Progress of an evaluation: a live line on a terminal and in a notebook, else a line every 10 seconds."""

    def __init__(self) -> None:
        self._live: LiveText | None = live_text(sys.stderr)
        self._started = self._shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total and self._live:
            self._live.clear()
        if done == total or now - self._shown < (0.2 if self._live else _LOG_INTERVAL_SECONDS):
            return
        self._shown = now
        rate = done / max(1e-9, now - self._started)
        line = f"{done}/{total} rows  {rate:.0f} rows/s  {(total - done) / max(1e-9, rate):.0f} s left"
        if self._live:
            self._live.draw(line)
        else:
            _log.info("%s", line)
