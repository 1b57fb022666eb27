"""Columns of a file of predictions."""

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rayfuse.data.frames import INPUTS_USED
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.errors import SpecError
from rayfuse.spec.base import is_missing
from rayfuse.spec.error_messages import suggest_nearest

ERROR = "error"
"""Column with the reason why a row has no prediction; null for the others."""

_SCALAR_TYPES = (
    str,
    bool,
    int,
    float,
    Decimal,
    datetime.date,
    datetime.time,
    datetime.timedelta,
)


@dataclass(frozen=True)
class PredictionColumns:
    """Conversion of rows and their predictions to rows of a file."""

    tasks: tuple[str, ...]
    """Tasks of the model."""
    keep: tuple[str, ...] | None = None
    """Columns of the data to keep; None: all whose values are texts, numbers, booleans or times."""
    scores: bool = False
    """Include the probabilities of classes."""
    targets: Mapping[str, str] | None = None
    """Column of the data with the target of each task, which becomes TASK_target."""

    def check(self, rows: Iterable[Row | InvalidRow]) -> Iterator[str]:
        """Yield the columns of the data that are left out because a column of predictions has the same name.

        Raises SpecError if a column of `keep` is not in these rows, or has the name of a column of predictions.
        """
        known = list(dict.fromkeys(name for row in rows if isinstance(row, Row) for name in row.values))
        for name in self.keep or ():
            if known and name not in known:
                raise SpecError(f"keep: {name}: not a column of the data; {suggest_nearest(name, known)}")
            if self._is_reserved(name):
                raise SpecError(
                    f"keep: {name}: the predictions have a column of this name; rename it in the data"
                )
        if self.keep is None:
            yield from filter(self._is_reserved, known)

    def to_row(self, row: Row | InvalidRow, prediction: Mapping[str, Any] | InvalidRow) -> dict[str, Any]:
        """Return the columns of a row: kept ones, TASK, TASK_score, TASK_KEY for other parts, INPUT_sources, inputs used and error."""
        values = row.values if isinstance(row, Row) else {}
        content = self._kept(values)
        for task, column in (self.targets or {}).items():
            content[f"{task}_target"] = values.get(column)
        if isinstance(prediction, InvalidRow):
            empty = {name: None for task in self.tasks for name in (task, f"{task}_score")}
            return {**content, **empty, INPUTS_USED: None, ERROR: str(prediction)}
        return {
            **content,
            **self._answers(prediction),
            INPUTS_USED: list(prediction[INPUTS_USED]),
            ERROR: None,
        }

    def _kept(self, values: Mapping[str, Any]) -> dict[str, Any]:
        if self.keep is not None:
            return {name: values.get(name) for name in self.keep}
        return {
            name: value
            for name, value in values.items()
            if isinstance(value, _SCALAR_TYPES) and not is_missing(value) and not self._is_reserved(name)
        }

    def _answers(self, prediction: Mapping[str, Any]) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for task, output in prediction["outputs"].items():
            first = next(iter(output), None)
            for key, value in output.items():
                if key == "scores" and isinstance(value, Mapping):
                    columns[f"{task}_score"] = _score_of(output[first], value)
                if key != "scores" or self.scores:
                    columns[task if key == first else f"{task}_{key}"] = value
        return columns | {f"{name}_sources": found for name, found in prediction.get("sources", {}).items()}

    def _is_reserved(self, name: str) -> bool:
        return name in (INPUTS_USED, ERROR) or any(
            name == task or name in (f"{task}_score", f"{task}_scores", f"{task}_target")
            for task in self.tasks
        )


def _score_of(answer: Any, scores: Mapping[str, float]) -> Any:
    """Return the probability of a label, or of each of a list of labels."""
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        return [scores.get(str(label)) for label in answer]
    return scores.get(str(answer))
