"""Tasks: what a model predicts, and the metrics of each kind of task."""

from typing import Annotated, Any

from rayfuse.spec.family import Family, PartOf
from rayfuse.spec.tasks.base import BaseTaskConfig, ColumnTaskConfig, Mode, MultiHot, Target, TaskRow
from rayfuse.spec.tasks.classification import ClassificationTaskConfig
from rayfuse.spec.tasks.custom import CustomTaskConfig
from rayfuse.spec.tasks.generation import GenerationTaskConfig
from rayfuse.spec.tasks.matching import MatchingTaskConfig
from rayfuse.spec.tasks.multi_label import MultiLabelTaskConfig
from rayfuse.spec.tasks.ordinal import OrdinalTaskConfig
from rayfuse.spec.tasks.preference import PreferenceTaskConfig
from rayfuse.spec.tasks.ranking import RankingTaskConfig
from rayfuse.spec.tasks.regression import RegressionTaskConfig
from rayfuse.spec.tasks.retrieval import RetrievalTaskConfig
from rayfuse.spec.tasks.tagging import TaggingTaskConfig

TASKS: Family[BaseTaskConfig] = Family(
    "task",
    {
        ClassificationTaskConfig: "rayfuse.model.tasks.classification:ClassificationHead",
        MultiLabelTaskConfig: "rayfuse.model.tasks.multi_label:MultiLabelHead",
        OrdinalTaskConfig: "rayfuse.model.tasks.ordinal:OrdinalHead",
        RegressionTaskConfig: "rayfuse.model.tasks.regression:RegressionHead",
        TaggingTaskConfig: "rayfuse.model.tasks.tagging:TaggingHead",
        MatchingTaskConfig: "rayfuse.model.tasks.matching:MatchingHead",
        RetrievalTaskConfig: "rayfuse.model.tasks.retrieval:RetrievalHead",
        RankingTaskConfig: "rayfuse.model.tasks.ranking:RankingHead",
        GenerationTaskConfig: "rayfuse.model.tasks.generation:GenerationHead",
        PreferenceTaskConfig: "rayfuse.model.tasks.preference:PreferenceHead",
    },
    custom=CustomTaskConfig,
)
"""The built-in tasks."""

TaskConfig = Annotated[BaseTaskConfig, PartOf(lambda: TASKS)]
"""Any task."""


def with_default_columns(tasks: Any) -> Any:
    """Set the column of each task that needs one and has none to the task's name."""
    if not isinstance(tasks, dict):
        return tasks
    return {
        name: {"column": name, **task} if isinstance(task, dict) and _needs_column(task) else task
        for name, task in tasks.items()
    }


def _needs_column(task: dict[str, Any]) -> bool:
    config = TASKS.config_class(task.get("type"))
    return config is None or (issubclass(config, BaseTaskConfig) and config.needs_column)


__all__ = [
    "TASKS",
    "BaseTaskConfig",
    "ClassificationTaskConfig",
    "ColumnTaskConfig",
    "CustomTaskConfig",
    "GenerationTaskConfig",
    "MatchingTaskConfig",
    "Mode",
    "MultiHot",
    "MultiLabelTaskConfig",
    "OrdinalTaskConfig",
    "PreferenceTaskConfig",
    "RankingTaskConfig",
    "RegressionTaskConfig",
    "RetrievalTaskConfig",
    "TaggingTaskConfig",
    "Target",
    "TaskConfig",
    "TaskRow",
    "with_default_columns",
]
