"""What a model answers, and the metrics by which each kind of task is judged."""

from typing import Annotated, Any, get_args

from pydantic import Discriminator, Field, Tag

from rayfuse.spec.custom import builtin_or_custom
from rayfuse.spec.tasks.base import BaseTask, Cell, ColumnTask, Mode, Target, TaskRow
from rayfuse.spec.tasks.classification import CLASSIFICATION_METRICS, ClassificationTask
from rayfuse.spec.tasks.custom import CustomTask
from rayfuse.spec.tasks.matching import MATCHING_METRICS, MatchingTask
from rayfuse.spec.tasks.multi_label import MULTI_LABEL_METRICS, MultiLabelTask
from rayfuse.spec.tasks.ordinal import ORDINAL_METRICS, OrdinalTask
from rayfuse.spec.tasks.ranking import RANKING_METRICS, RankingTask
from rayfuse.spec.tasks.regression import REGRESSION_METRICS, RegressionTask
from rayfuse.spec.tasks.retrieval import RETRIEVAL_METRICS, RetrievalTask
from rayfuse.spec.tasks.tagging import TAGGING_METRICS, TaggingTask

_Builtin = Annotated[
    ClassificationTask
    | MultiLabelTask
    | OrdinalTask
    | RegressionTask
    | TaggingTask
    | MatchingTask
    | RetrievalTask
    | RankingTask,
    Field(discriminator="type"),
]
Task = Annotated[
    Annotated[_Builtin, Tag("builtin")] | Annotated[CustomTask, Tag("custom")],
    Discriminator(builtin_or_custom),
]

METRICS: dict[str, Mode] = {
    **CLASSIFICATION_METRICS,
    **MULTI_LABEL_METRICS,
    **ORDINAL_METRICS,
    **REGRESSION_METRICS,
    **TAGGING_METRICS,
    **MATCHING_METRICS,
    **RETRIEVAL_METRICS,
    **RANKING_METRICS,
}
"""Every metric of a built-in task by its name, where the task is not known; no name means two things."""

_WITHOUT_COLUMN = {
    get_args(kind.model_fields["type"].annotation)[0]
    for kind in get_args(get_args(_Builtin)[0])
    if not kind.model_fields["column"].is_required()
}
"""Types of tasks that need no column."""


def with_default_columns(value: Any) -> Any:
    """A task that needs a column reads that of its own name unless it says otherwise."""
    if not isinstance(value, dict):
        return value
    return {
        name: {"column": name, **task}
        if isinstance(task, dict) and task.get("type") not in _WITHOUT_COLUMN
        else task
        for name, task in value.items()
    }


__all__ = [
    "CLASSIFICATION_METRICS",
    "METRICS",
    "REGRESSION_METRICS",
    "BaseTask",
    "Cell",
    "ClassificationTask",
    "ColumnTask",
    "CustomTask",
    "MatchingTask",
    "Mode",
    "MultiLabelTask",
    "OrdinalTask",
    "RankingTask",
    "RegressionTask",
    "RetrievalTask",
    "TaggingTask",
    "Target",
    "Task",
    "TaskRow",
    "with_default_columns",
]
