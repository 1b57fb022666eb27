"""`rayfuse evaluate MODEL --data URL`: metrics of a model, and the same for every subset of its inputs."""

from pathlib import Path

import click

from rayfuse.cli import output

_DEFAULT_PLOTTED_ROWS = 6
"""Rows that `--explain` plots by default."""


@click.command()
@click.argument("model")
@click.option(
    "--data",
    "url",
    metavar="URL",
    required=True,
    help="Rows to evaluate on: a data file, glob or folder.",
)
@click.option(
    "--output",
    "target",
    metavar="FILE",
    help="Also write the prediction of each row, with its target: .parquet, .jsonl or .csv, a path or URL.",
)
@click.option(
    "--batch-size", default=64, show_default=True, type=click.IntRange(min=1), help="Rows of a batch."
)
@click.option(
    "--tracking-uri",
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
    model: str,
    url: str,
    target: str | None,
    batch_size: int,
    tracking_uri: str | None,
    explain: int | None,
    plots: Path,
) -> None:
    """Compute the metrics of MODEL (models:/NAME@ALIAS, models:/NAME/VERSION or a model folder) on the rows at URL."""
    from rayfuse.api import evaluation

    result = evaluation.evaluate(
        model,
        url,
        batch_size=batch_size,
        explain=explain,
        plots=plots,
        output=target,
        tracking_uri=tracking_uri,
    )
    output.print_result(result.to_dict(), str(result))
