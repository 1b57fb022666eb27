"""Targets of rows, by task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.spec.inputs import Input
from rayfuse.spec.tasks import GenerationTaskConfig, Target, TaskConfig


class TargetReader(ABC):
    """Reader of the targets of one task."""

    @abstractmethod
    def read(self, values: Mapping[str, Any]) -> Target:
        """Return the target of a row. Raises InvalidInputError if it is missing or invalid."""


class SpecTargetReader(TargetReader):
    """Reader of targets that need no more than the task's options."""

    def __init__(self, task: TaskConfig, inputs: Mapping[str, Input]) -> None:
        self._task, self._inputs = task, inputs

    def read(self, values: Mapping[str, Any]) -> Target:
        return self._task.read(values, self._inputs)


class ReplyReader(TargetReader):
    """Reader of replies: their tokens, after the numbers of their group in tasks with `references`."""

    def __init__(self, task: GenerationTaskConfig, inputs: Mapping[str, Input]) -> None:
        self._task = task
        self._renderer = PromptRenderer(task, inputs)

    def read(self, values: Mapping[str, Any]) -> Target:
        ids = self._renderer.reply_ids(self._task.reply(values))
        return [*self._task.group(values), *map(float, ids)]


def target_reader(task: TaskConfig, inputs: Mapping[str, Input]) -> TargetReader:
    """Return the reader of a task's targets. `inputs`: the job's inputs."""
    if isinstance(task, GenerationTaskConfig):
        return ReplyReader(task, inputs)
    return SpecTargetReader(task, inputs)
