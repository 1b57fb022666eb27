"""Task heads: their outputs, losses, predictions and metrics."""

from rayfuse.model.tasks.base import TaskHead
from rayfuse.spec.tasks import TASKS, TaskConfig


def task_class(options: TaskConfig) -> type[TaskHead]:
    """Return the head class of a task. Raises SpecError if a custom class cannot be loaded."""
    found: type[TaskHead] = TASKS.resolve(options)
    return found


def build_task(options: TaskConfig, dim: int) -> TaskHead:
    """Build the head of a task over a fused vector `dim` wide. Raises SpecError if a custom class cannot be loaded."""
    head: TaskHead = TASKS.build(options, dim)
    return head


__all__ = ["TaskHead", "build_task", "task_class"]
