"""`rayfuse evaluate MODEL --data URL`: metrics of a model, and the same for every subset of its inputs."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rayfuse.cli import output
from rayfuse.cli.models import by_inputs_table

_PLAIN_SECONDS = 10.0
_PICTURED = 6
"""Rows that `--explain` draws."""
_LABELS = 6
"""Answers whose own contributions people are shown; all are in --json."""


@click.command()
@click.argument("model")
@click.option(
    "--data", "url", metavar="URL", required=True, help="Rows: jsonl, csv or parquet; a file, glob or folder."
)
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--tracking",
    metavar="URI",
    help="MLflow of a models:/… MODEL; MLFLOW_TRACKING_URI, else runs/mlflow.db, where absent.",
)
@click.option(
    "--explain",
    metavar="[ROWS]",
    type=click.IntRange(min=0),
    is_flag=False,
    flag_value=_PICTURED,
    help=f"Also say what each input contributes, and draw why ROWS of the rows ({_PICTURED} unless given) were answered "
    "so; write it last.",
)
@click.option(
    "--pictures",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("explained"),
    show_default=True,
    help="Where --explain draws; also logged to the run that made MODEL.",
)
@output.json_option
def evaluate(
    model: str, url: str, batch_size: int, tracking: str | None, explain: int | None, pictures: Path
) -> None:
    """Measure MODEL (models:/NAME@ALIAS, models:/NAME/VERSION or a model folder) on the rows at URL."""
    from rayfuse.registry.evaluate import evaluate_folder
    from rayfuse.registry.explaining import log_pictures
    from rayfuse.registry.fetching import fetch

    local = fetch(model, tracking)
    found = evaluate_folder(
        local.folder, url, batch_size, _Progress(), output.warn, explain=explain, pictures=pictures
    )
    data = {name: found[name] for name in ("metrics", "by_inputs", "rows", "bad")}
    skipped = f", {found['bad']} skipped" if found["bad"] else ""
    text = f"{found['rows']} rows{skipped}\n{by_inputs_table(found['by_inputs'])}"
    if explain is not None:
        run_id = log_pictures(pictures, local, tracking, output.warn) if found.get("pictures") else None
        data["explain"] = {
            "tasks": found["explain"],
            "attention": found.get("attention", {}),
            "pictures": [str(path) for path in found.get("pictures", [])],
            "run_id": run_id,
        }
        text += "\n" + explained_text(data["explain"])
    output.result(data, text)


def explained_text(explained: Mapping[str, Any]) -> str:
    """What each input contributed, for people: a table per task, and where the pictures are."""
    parts = []
    for task, found in explained["tasks"].items():
        labels = list(found.get("by_answer", {}))[:_LABELS]
        rows = [
            [
                name,
                value,
                found["rows_with"][name],
                *(found["by_answer"][label].get(name) for label in labels),
            ]
            for name, value in found["contributions"].items()
        ]
        parts.append(
            f"\n{task}: contributions to the {found['score']} of the answer, from {found['base']:.4g} without inputs "
            f"to {found['value']:.4g}\n"
            + output.table(["input", "mean absolute", "rows", *(f"for {label}" for label in labels)], rows)
        )
    if explained["attention"]:
        looked = ", ".join(f"{name} {value:.2f}" for name, value in explained["attention"].items())
        parts.append(f"\nattention over the rows that were drawn: {looked}")
    if explained["pictures"]:
        logged = f", and in MLflow run {explained['run_id']}" if explained["run_id"] else ""
        parts.append(
            f"\n{len(explained['pictures'])} pictures in {Path(explained['pictures'][0]).parent}{logged}"
        )
    return "\n".join(parts)


class _Progress:
    """Rows done, on standard error: a live line on a terminal, now and then a plain one elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._started = self._shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._shown < (0.2 if self._live else _PLAIN_SECONDS) and done < total:
            return
        if done == total and not self._live:
            return
        self._shown = now
        rate = done / max(1e-9, now - self._started)
        line = f"{done}/{total} rows  {rate:.0f} rows/s  {(total - done) / max(1e-9, rate):.0f} s left"
        end = "\n" if done == total or not self._live else ""
        sys.stderr.write(f"\r{line:<60}{end}" if self._live else f"{line}\n")
        sys.stderr.flush()
