"""`rayfuse init DATA --target COLUMN`: write a job for data as it is."""

from typing import Any

import click

from rayfuse.cli import output
from rayfuse.spec.quality import Quality


@click.command()
@click.argument("data", metavar="DATA")
@output.target_options(required=True)
@click.option(
    "--output", "-o", "path", metavar="FILE", default="job.yaml", show_default=True,
    help="File of the job; - prints it.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite the file.")
@click.option("--name", help="Name of the job; by default made from those of the data and the target.")
@click.option("--plan/--no-plan", "with_plan", default=True, help="Estimate memory and time of the job.")
@output.quality_option
@output.set_option("train.epochs=3")
@output.json_option
def init(
    data: str,
    targets: tuple[str, ...],
    tasks: dict[str, str],
    exclude: tuple[str, ...],
    path: str,
    force: bool,
    name: str | None,
    with_plan: bool,
    quality: Quality | None,
    overrides: dict[str, Any],
) -> None:
    """Write a job that predicts a column of DATA from the others, with the reason of each choice as a comment.

    DATA is a file (csv, tsv, jsonl, parquet, Arrow, Excel, and so on), a folder per class, a folder of Hugging Face
    datasets, a glob or a URL. Up to 10,000 rows are read to find what each column is.

    With --quality, the job has all options that `rayfuse train --quality` would choose.
    """
    from rayfuse.api import init as api

    if path != "-":
        api.check_output(path, force)
    drafted = api.draft(data, targets, tasks=tasks, exclude=exclude, name=name, quality=quality, **overrides)
    if path == "-":
        text = drafted.to_yaml()
        output.print_result({"job": drafted.job.name, "yaml": text}, text.rstrip())
        return
    api.write_job(drafted, path)
    output.echo(str(drafted))
    for warning in drafted.warnings:
        output.warn(warning)
    plan = api.try_plan(drafted) if with_plan else None
    if plan is not None:
        output.echo(f"\n{plan}")
    result = {
        "job": drafted.job.name,
        "file": path,
        "columns": drafted.to_dict(),
        "plan": plan and plan.to_dict(),
    }
    output.print_result(result, f"\nwrote {path}\nnext: rayfuse train {path}")
