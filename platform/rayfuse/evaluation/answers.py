"""Predictions of an evaluation, row by row, in a file."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from rayfuse.data.collate import Batch
from rayfuse.data.prediction_columns import PredictionColumns
from rayfuse.data.prediction_file import PredictionFile
from rayfuse.data.row_chunks import CHUNK_ROWS
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.data.samples import Sample
from rayfuse.errors import InvalidInputError
from rayfuse.modalities.chat import reply_of
from rayfuse.model.evaluation import Subset
from rayfuse.model.fused import task_heads
from rayfuse.model.outputs import ModelOutput
from rayfuse.model.predictor import Predictor
from rayfuse.spec.inputs import ChatInput


class AnswerRecorder:
    """Forward pass of an evaluation that also writes the predictions from all inputs to a file.

    Rows are added with `add` before the batch with their samples is passed to the recorder. Columns are those of
    `rayfuse predict`, and TASK_target.
    """

    def __init__(self, predictor: Predictor, output: str) -> None:
        """Begin a file. Raises SpecError for an unsupported suffix, ResourceError if it cannot be written."""
        job = predictor.job
        targets = {name: task.target_column for name, task in job.tasks.items()}
        self._columns = PredictionColumns(
            tuple(job.tasks), targets={name: column for name, column in targets.items() if column}
        )
        self._with_reply = [
            one.column for one in job.inputs.values() if isinstance(one, ChatInput) and one.with_reply
        ]
        self._file = PredictionFile(output)
        self._file.begin({}, resume=False)
        self._predictor, self._all_inputs = predictor, tuple(job.inputs)
        self._generates = any(head.reads_targets for head in task_heads(predictor.model).values())
        self._pending: list[tuple[Row | InvalidRow, Sample | InvalidRow]] = []
        self._rows: list[dict[str, Any]] = []
        self._parts: list[str] = []

    def add(self, row: Row | InvalidRow, sample: Sample | InvalidRow) -> None:
        """Add a row of the next batch."""
        self._pending.append((row, sample))

    def __call__(self, batch: Batch, subsets: Sequence[Subset], generate: bool = False) -> list[ModelOutput]:
        """Return the outputs of the model for each subset of the inputs, and record the predictions from all inputs.

        If the model has tasks that generate texts, a call with `generate` follows for each batch, and is recorded.
        """
        results: list[ModelOutput] = self._predictor.model(batch, subsets, generate)
        if self._generates and not generate:
            return results
        samples = [sample for _, sample in self._pending if isinstance(sample, Sample)]
        found = results[list(subsets).index(self._all_inputs)].tasks
        self._record(self._predictor.format_predictions(samples, found))
        return results

    def close(self) -> None:
        """Write the file. Raises ResourceError if it cannot be written."""
        self._record([])
        self._write_part()
        self._file.merge(self._parts)

    def _record(self, predictions: Sequence[dict[str, Any]]) -> None:
        following = iter(predictions)
        for row, sample in self._pending:
            prediction = sample if isinstance(sample, InvalidRow) else next(following)
            self._rows.append(self._columns.to_row(self._with_replies(row), prediction))
        self._pending = []
        if len(self._rows) >= CHUNK_ROWS:
            self._write_part()

    def _with_replies(self, row: Row | InvalidRow) -> Row | InvalidRow:
        """Return a row whose dialogues with a reply are that reply."""
        if isinstance(row, InvalidRow):
            return row
        replies = {}
        for column in self._with_reply:
            with suppress(InvalidInputError):
                replies[column] = reply_of(row.values.get(column))
        return replace(row, values={**row.values, **replies})

    def _write_part(self) -> None:
        if self._rows:
            self._parts.append(f"00000-{len(self._parts):06d}")
            self._file.write_part(self._parts[-1], self._rows)
            self._rows = []
