"""`rayfuse evaluate MODEL --data URL`: metrics of a model, and the same for every subset of its inputs."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rayfuse.cli import output
from rayfuse.cli.models import by_inputs_table

_LOG_INTERVAL_SECONDS = 10.0
_DEFAULT_PLOTTED_ROWS = 6
"""Rows that `--explain` plots by default."""
_MAX_LABELS = 6
"""Labels with a column of contributions in the text; all are in --json."""


@click.command()
@click.argument("model")
@click.option(
    "--data",
    "url",
    metavar="URL",
    required=True,
    help="Rows to evaluate on: jsonl, csv or parquet; a file, glob or folder.",
)
@click.option(
    "--batch-size", default=64, show_default=True, type=click.IntRange(min=1), help="Rows of a batch."
)
@click.option(
    "--tracking",
    "tracking_uri",
    metavar="URI",
    help="MLflow tracking URI for models:/…; by default MLFLOW_TRACKING_URI, else runs/mlflow.db.",
)
@click.option(
    "--explain",
    metavar="[ROWS]",
    type=click.IntRange(min=0),
    is_flag=False,
    flag_value=_DEFAULT_PLOTTED_ROWS,
    help=f"Also compute the contribution of each input, and plot the attributions of ROWS rows (default "
    f"{_DEFAULT_PLOTTED_ROWS}). Without a number it must be the last option.",
)
@click.option(
    "--plots",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("plots"),
    show_default=True,
    help="Folder for the plots of --explain, which are also logged to the MLflow run of MODEL.",
)
@output.json_option
def evaluate(
    model: str, url: str, batch_size: int, tracking_uri: str | None, explain: int | None, plots: Path
) -> None:
    """Compute the metrics of MODEL (models:/NAME@ALIAS, models:/NAME/VERSION or a model folder) on the rows at URL."""
    from rayfuse.evaluation.evaluate import evaluate_folder
    from rayfuse.registry.download import fetch
    from rayfuse.registry.run_artifacts import log_attribution_plots

    local = fetch(model, tracking_uri)
    found = evaluate_folder(
        local.folder, url, batch_size, _Progress(), output.warn, explain=explain, plot_dir=plots
    )
    data = {name: found[name] for name in ("metrics", "by_inputs", "rows", "invalid")}
    skipped = f", {found['invalid']} skipped" if found["invalid"] else ""
    text = f"{found['rows']} rows{skipped}\n{by_inputs_table(found['by_inputs'])}"
    if explain is not None:
        run_id = (
            log_attribution_plots(plots, local, tracking_uri, output.warn) if found.get("plots") else None
        )
        data["explain"] = {
            "tasks": found["explain"],
            "attention": found.get("attention", {}),
            "plots": [str(path) for path in found.get("plots", [])],
            "run_id": run_id,
        }
        text += "\n" + format_explanation(data["explain"])
    output.print_result(data, text)


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
            f"\n{task}: contributions to the {found['score']} of the prediction, from {found['base_value']:.4g} without inputs "
            f"to {found['value']:.4g}\n"
            + output.table(["input", "mean absolute", "rows", *(f"for {label}" for label in labels)], rows)
        )
    if explanation["attention"]:
        attention = ", ".join(f"{name} {value:.2f}" for name, value in explanation["attention"].items())
        parts.append(f"\nmean attention over the plotted rows: {attention}")
    if explanation["plots"]:
        logged = f", and in MLflow run {explanation['run_id']}" if explanation["run_id"] else ""
        parts.append(f"\n{len(explanation['plots'])} plots in {Path(explanation['plots'][0]).parent}{logged}")
    return "\n".join(parts)


class _Progress:
    """Progress on standard error: a live line on a terminal, else a line every 10 seconds."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._started = self._shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._shown < (0.2 if self._live else _LOG_INTERVAL_SECONDS) and done < total:
            return
        if done == total and not self._live:
            return
        self._shown = now
        rate = done / max(1e-9, now - self._started)
        line = f"{done}/{total} rows  {rate:.0f} rows/s  {(total - done) / max(1e-9, rate):.0f} s left"
        end = "\n" if done == total or not self._live else ""
        sys.stderr.write(f"\r{line:<60}{end}" if self._live else f"{line}\n")
        sys.stderr.flush()
