"""`rayfuse evaluate MODEL --data URL`: metrics of a model, and the same for every subset of its inputs."""

import sys
import time

import click

from rayfuse.cli import output
from rayfuse.cli.models import by_inputs_table

_PLAIN_SECONDS = 10.0


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
@output.json_option
def evaluate(model: str, url: str, batch_size: int, tracking: str | None) -> None:
    """Measure MODEL (models:/NAME@ALIAS, models:/NAME/VERSION or a model folder) on the rows at URL."""
    from rayfuse.registry.evaluate import evaluate_folder
    from rayfuse.registry.fetching import fetch

    folder = fetch(model, tracking).folder
    found = evaluate_folder(folder, url, batch_size, _Progress(), output.warn)
    data = {name: found[name] for name in ("metrics", "by_inputs", "rows", "bad")}
    skipped = f", {found['bad']} skipped" if found["bad"] else ""
    output.result(data, f"{found['rows']} rows{skipped}\n{by_inputs_table(found['by_inputs'])}")


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
