"""What the fused vector is asked: the heads, their losses, answers and metrics."""

from rayfuse.model.custom import custom_options, load_class
from rayfuse.model.tasks.base import TaskHead
from rayfuse.model.tasks.classification import ClassificationHead
from rayfuse.model.tasks.matching import MatchingHead
from rayfuse.model.tasks.multi_label import MultiLabelHead
from rayfuse.model.tasks.ordinal import OrdinalHead
from rayfuse.model.tasks.ranking import RankingHead
from rayfuse.model.tasks.regression import RegressionHead
from rayfuse.model.tasks.retrieval import RetrievalHead
from rayfuse.model.tasks.tagging import TaggingHead
from rayfuse.spec.tasks import CustomTask, Task

TASKS: dict[str, type[TaskHead]] = {
    "classification": ClassificationHead,
    "multi_label": MultiLabelHead,
    "ordinal": OrdinalHead,
    "regression": RegressionHead,
    "tagging": TaggingHead,
    "matching": MatchingHead,
    "retrieval": RetrievalHead,
    "ranking": RankingHead,
}


def build_task(options: Task, dim: int) -> TaskHead:
    """The head of one task of a job, over a vector `dim` wide."""
    if isinstance(options, CustomTask):
        found = load_class(options.type, TaskHead)
        return found(custom_options(options, found), dim)
    return TASKS[options.type](options, dim)


__all__ = ["TASKS", "TaskHead", "build_task"]
