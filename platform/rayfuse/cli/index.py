"""`rayfuse index MODEL --data URL --output URL`: an index of passages, which `rayfuse search` finds."""

import click

from rayfuse.cli import output


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--data",
    "url",
    metavar="URL",
    required=True,
    help="Passages: a data file, glob or folder, with a row for each.",
)
@click.option("--output", "target", metavar="FOLDER", required=True, help="Path or URL of the index.")
@click.option("--task", metavar="TASK", help="The retrieval task, if MODEL has several.")
@click.option(
    "--input",
    "name",
    metavar="INPUT",
    help="Input of the task that the passages are; by default the one whose columns the data has.",
)
@click.option(
    "--keep",
    metavar="COLUMN,…",
    help="Columns of the passages; by default all of texts, numbers, booleans and times.",
)
@click.option(
    "--batch-size", default=64, show_default=True, type=click.IntRange(min=1), help="Rows of a batch."
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    help="Number of Ray actors, each with the model; by default this process embeds, without Ray.",
)
@click.option("--no-resume", is_flag=True, help="Embed all rows again after an interrupted command.")
@click.option(
    "--tracking-uri", "tracking_uri", metavar="URI", help="MLflow server or database, for models:/…"
)
@output.json_option
def index(
    model: str,
    url: str,
    target: str,
    task: str | None,
    name: str | None,
    keep: str | None,
    batch_size: int,
    concurrency: int | None,
    no_resume: bool,
    tracking_uri: str | None,
) -> None:
    """Embed the rows of data files as passages with the retrieval task of MODEL, for `rayfuse search`.

    MODEL is models:/NAME@ALIAS, models:/NAME/VERSION or a model folder. The same command resumes an interrupted one.
    """
    from rayfuse.api import indexing

    result = indexing.build_index(
        model,
        url,
        target,
        task=task,
        input=name,
        keep=None if keep is None else keep.split(","),
        batch_size=batch_size,
        concurrency=concurrency,
        resume=not no_resume,
        tracking_uri=tracking_uri,
    )
    output.print_result(result.to_dict(), str(result))
