"""Work on rows, spread over a Ray cluster with Ray Data: as many pieces at a time as the cluster has room for."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rayfuse import errors
from rayfuse.data.reading import Piece

_FAILURE = "failure"


def spread(work: Callable[[Piece], Piece], pieces: Sequence[Piece]) -> Iterator[Piece]:
    """What comes of each piece, in the order in which the cluster is done with them.

    A RayfuseError of a piece is raised here as itself.
    """
    import ray
    import ray.data

    shared = ray.put(
        work
    )  # Ray Data holds on to what it is given, and a store lives as long as its maker holds it

    def work_or_failure(piece: dict[str, Any]) -> dict[str, Any]:
        try:
            return {**ray.get(shared)(piece), _FAILURE: ""}
        except errors.RayfuseError as error:
            return {_FAILURE: json.dumps([type(error).__name__, str(error)])}

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with ray.data.DataContext.current(context):
        found = ray.data.from_items(list(pieces), override_num_blocks=len(pieces)).map(work_or_failure)
    for result in found.iter_rows():
        if result[_FAILURE]:
            kind, reason = json.loads(result[_FAILURE])
            raise getattr(errors, kind)(reason)
        yield result
