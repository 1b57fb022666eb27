"""`rayfuse search INDEX QUERY`: the passages of an index that are most similar to a query."""

import click

from rayfuse.cli import output
from rayfuse.formatting import table, truncate

_MAX_CELL = 60


@click.command()
@click.argument("index", metavar="INDEX")
@click.argument("query", metavar="QUERY")
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=1), help="Number of passages.")
@click.option("--columns", metavar="COLUMN,…", help="Columns of the passages to print; all by default.")
@output.json_option
def search(index: str, query: str, top: int, columns: str | None) -> None:
    """Print the passages of INDEX, a folder of `rayfuse index`, that are most similar to QUERY.

    QUERY is a text; for an input of files, their path or URL.
    """
    from rayfuse.api import indexing

    found = indexing.load_index(index).search(query, top, None if columns is None else columns.split(","))
    names = list(found[0].values) if found else []
    rows = [
        [f"{one.similarity:.4f}", *(truncate(str(one.values[name]), _MAX_CELL) for name in names)]
        for one in found
    ]
    output.print_result({"passages": [one.to_dict() for one in found]}, table(["similarity", *names], rows))
