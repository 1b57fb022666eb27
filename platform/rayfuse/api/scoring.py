"""Prediction of chunks of rows, in this process or by Ray actors."""

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, cast

from rayfuse.api.models import Model, ModelLoader
from rayfuse.data.invalid_rows import InvalidRows
from rayfuse.data.prediction_columns import PredictionColumns
from rayfuse.data.prediction_file import PredictionFile
from rayfuse.data.row_chunks import RowChunk, RowFiles
from rayfuse.data.rows import InvalidRow


@dataclass(frozen=True)
class ScoredPart:
    """A part of a file of predictions that was written."""

    name: str
    """Name of the chunk."""
    rows: int
    """Number of rows."""
    invalid: InvalidRows
    """Rows without a prediction."""


@dataclass(frozen=True)
class ChunkScorer:
    """Predict a chunk of rows, and write it as a part of a file of predictions."""

    output: str
    """Path or URL of the file."""
    columns: PredictionColumns
    """Its columns."""
    batch_size: int
    """Rows of a batch."""
    concurrency: int | None
    """Number of actors; for an endpoint, of requests at a time."""

    def __call__(self, model: Model, chunk: RowChunk) -> ScoredPart:
        """Predict and write. Raises UnavailableError if the endpoint does not respond."""
        found = model.predict_data(chunk.rows, self.batch_size, self.concurrency)
        rows = [self.columns.to_row(*pair) for pair in zip(chunk.rows, found, strict=True)]
        PredictionFile(self.output).write_part(chunk.name, rows)
        return ScoredPart(
            chunk.name, len(rows), InvalidRows(one for one in found if isinstance(one, InvalidRow))
        )


def score_on_ray(
    files: RowFiles, scorer: ChunkScorer, loader: ModelLoader, skip: Collection[str]
) -> Iterator[ScoredPart]:
    """Read files in tasks and predict their chunks in actors; yield the parts in the order in which they are ready."""
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # so that each chunk is a block, which goes to the next free actor
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    numbers = [{"number": number} for number in range(len(files.files))]
    with ray.data.DataContext.current(context):
        scored = (
            ray.data.from_items(numbers, override_num_blocks=len(numbers))
            # Other resources than those of the actors, or Ray would read in one of these.
            .flat_map(_ChunkReader(files, frozenset(skip)), num_cpus=0)
            .map(
                cast(Any, _ChunkActor),  # Ray's annotation has functions only
                fn_constructor_args=(loader, scorer),
                compute=ray.data.ActorPoolStrategy(size=scorer.concurrency),
                num_cpus=1,
                num_gpus=1 if loader.needs_gpu else 0,
            )
        )
    for record in scored.iter_rows():
        yield ScoredPart(record["name"], record["rows"], InvalidRows.from_json(record["invalid"]))


@dataclass(frozen=True)
class _ChunkReader:
    files: RowFiles
    skip: frozenset[str]

    def __call__(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        return (chunk.to_record() for chunk in self.files.read(self.skip, only=item["number"]))


class _ChunkActor:
    """Actor of Ray Data that predicts chunks."""

    def __init__(self, loader: ModelLoader, scorer: ChunkScorer) -> None:
        self._model, self._scorer = loader.load(), scorer

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        part = self._scorer(self._model, RowChunk.from_record(record))
        return {"name": part.name, "rows": part.rows, "invalid": part.invalid.to_json()}
