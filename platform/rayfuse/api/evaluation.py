"""Evaluation of a model on rows, with every subset of its inputs."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.api.progress import RowProgress
from rayfuse.api.tables import rows_url
from rayfuse.console import show_log
from rayfuse.formatting import metric_table, table

if TYPE_CHECKING:
    from rayfuse.registry.download import LocalModel

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
    output: str | None = None
    """File of the predictions, row by row."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON."""
        content: dict[str, Any] = {
            "metrics": self.metrics,
            "by_inputs": self.by_inputs,
            "rows": self.rows,
            "invalid": self.invalid,
        }
        optional = {"explain": self.explain, "output": self.output}
        return content | {name: value for name, value in optional.items() if value is not None}

    def __str__(self) -> str:
        skipped = f", {self.invalid} skipped" if self.invalid else ""
        text = f"{self.rows} rows{skipped}\n{metric_table(self.by_inputs)}"
        if self.output is not None:
            text += f"\npredictions in {self.output}"
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
    output: str | Path | None = None,
    tracking_uri: str | None = None,
    verbose: bool = True,
) -> EvaluationResult:
    """Compute the metrics of a model on rows with targets, and the same for every subset of its inputs.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a model folder or its URL.
        data: Rows: data files (a file, glob, folder or list of these), or a table in memory as `rayfuse.Job` takes.
        batch_size: Rows of a batch.
        explain: Also compute the contribution of each input, and plot the attributions of that many rows.
        plots: Folder for the plots of `explain`, which are also logged to the MLflow run of the model.
        output: Path or URL of a file for the prediction of each row, with the columns of `predict` and TASK_target.
        tracking_uri: MLflow for `models:/…`; by default MLFLOW_TRACKING_URI, else `runs/mlflow.db`.
        verbose: Show log lines and progress, unless the application has configured logging.

    Raises:
        SpecError: The model does not exist, or has too many inputs to explain.
        DataError: The rows cannot be read, or too many are invalid.
        UnavailableError: MLflow or a store does not respond.
    """
    from rayfuse.registry.download import fetch

    folder, target = Path(plots), None if output is None else str(output)
    with show_log(verbose):
        local = fetch(str(model), tracking_uri)
        found = _evaluate_rows(local, data, batch_size, explain=explain, plot_dir=folder, output=target)
        explanation = None if explain is None else _explanation(found, folder, local, tracking_uri)
    return EvaluationResult(
        found["metrics"], found["by_inputs"], found["rows"], found["invalid"], explanation, folder, target
    )


def _evaluate_rows(model: "LocalModel", data: Any, batch_size: int, **options: Any) -> dict[str, Any]:
    from rayfuse.evaluation.evaluate import evaluate_folder
    from rayfuse.model.model_io import load_job

    with rows_url(data, lambda: load_job(model.folder)[0]) as url:
        return evaluate_folder(model.folder, url, batch_size, RowProgress(), _log.warning, **options)


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
