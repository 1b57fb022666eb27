"""Data frames of predictions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

INPUTS_USED = "inputs_used"
"""Column with the names of the inputs that a prediction is from."""


def column_name(task: str, key: str) -> str:
    """Return the name of the column with one part of a task's predictions: TASK/KEY."""
    return f"{task}/{key}"


def prediction_frame(
    predictions: Sequence[Mapping[str, Any]], columns: Iterable[str] = (), index: Any = None
) -> "pd.DataFrame":
    """Return a row per prediction {"outputs": {task: {key: value}}, "inputs_used": [names]}.

    Columns: TASK/KEY, first those of `columns`, then others in the order in which they occur, and `inputs_used`.
    """
    import pandas as pd

    rows = [
        {
            column_name(task, key): value
            for task, output in prediction["outputs"].items()
            for key, value in output.items()
        }
        for prediction in predictions
    ]
    names = dict.fromkeys([*columns, *(name for row in rows for name in row)])
    content: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names if name != INPUTS_USED}
    content[INPUTS_USED] = [list(prediction[INPUTS_USED]) for prediction in predictions]
    return pd.DataFrame(content, index=index)
