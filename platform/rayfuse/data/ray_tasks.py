"""Parallel work on rows with Ray Data, on all CPUs of a Ray cluster."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence

from rayfuse import errors
from rayfuse.data.ingest import WorkItem

_ERROR_KEY = "error"


def map_on_ray(fn: Callable[[WorkItem], WorkItem], items: Sequence[WorkItem]) -> Iterator[WorkItem]:
    """Map a function over items on the cluster, and yield the results in the order in which they are ready.

    A RayfuseError of an item is raised here with its own type.
    """
    import ray
    import ray.data

    # By reference, since Ray Data keeps its function alive, and `fn` may keep a row store alive.
    fn_ref = ray.put(fn)

    def call(item: WorkItem) -> WorkItem:
        try:
            return {**ray.get(fn_ref)(item), _ERROR_KEY: ""}
        except errors.RayfuseError as error:
            return {_ERROR_KEY: json.dumps([type(error).__name__, error.args])}

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with ray.data.DataContext.current(context):
        found = ray.data.from_items(list(items), override_num_blocks=len(items)).map(call)
    for result in found.iter_rows():
        if result[_ERROR_KEY]:
            kind, arguments = json.loads(result[_ERROR_KEY])
            raise getattr(errors, kind)(*arguments)
        yield result
