"""What the fused vector is asked: the heads, their losses, answers and metrics."""

from rayfuse.model.tasks.base import TaskHead
from rayfuse.model.tasks.classification import ClassificationHead
from rayfuse.model.tasks.regression import RegressionHead
from rayfuse.spec.tasks import Task

TASKS: dict[str, type[TaskHead]] = {
    "classification": ClassificationHead,
    "regression": RegressionHead,
}


def build_task(options: Task, dim: int) -> TaskHead:
    """The head of one task of a job, over a vector `dim` wide."""
    return TASKS[options.type](options, dim)


__all__ = ["TASKS", "TaskHead", "build_task"]
