"""Targets of rows, by task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from itertools import zip_longest
from typing import Any

from rayfuse.errors import DataError, InvalidInputError
from rayfuse.modalities.prompt_kinds import build_renderer
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.spec.family import import_object
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import GenerationTaskConfig, PreferenceTaskConfig, Target, TaskConfig


class TargetReader(ABC):
    """Reader of the targets of one task; a task names its class as `target_reader`."""

    @abstractmethod
    def __init__(self, task: Any, inputs: Mapping[str, Input]) -> None:
        """Store a task's options, and the job's inputs."""

    @abstractmethod
    def read(self, values: Mapping[str, Any]) -> Target:
        """Return the target of a row. Raises InvalidInputError if it is missing or invalid."""

    @abstractmethod
    def check(self) -> None:
        """Raise DataError, with the field of the task, if no target can be read; called before a job starts."""


class SpecTargetReader(TargetReader):
    """Reader of targets that need no more than the task's options."""

    def __init__(self, task: TaskConfig, inputs: Mapping[str, Input]) -> None:
        self._task, self._inputs = task, inputs

    def read(self, values: Mapping[str, Any]) -> Target:
        return self._task.read(values, self._inputs)

    def check(self) -> None:
        """Do nothing: the spec has been validated."""


class ReplyReader(TargetReader):
    """Reader of replies: their tokens, after the numbers of their group in tasks with `references`."""

    def __init__(self, task: GenerationTaskConfig, inputs: Mapping[str, Input]) -> None:
        self._task, self._inputs = task, inputs

    @cached_property
    def _renderer(self) -> PromptRenderer:
        return build_renderer(self._task, self._inputs)

    def read(self, values: Mapping[str, Any]) -> Target:
        ids = self._renderer.reply_ids(self._task.reply(values))
        return [*self._task.group(values), *map(float, ids)]

    def check(self) -> None:
        """Raise DataError if the tokenizer or chat template of the language model cannot be used, or is too short.

        Each input with an encoder counts as one soft token here; the workers know their number.
        """
        try:
            self._renderer.check_context(len(self._renderer.span_inputs))
        except DataError as error:
            raise DataError(f"model: {error}") from None


class PairReader(ReplyReader):
    """Reader of pairs of a better and a worse reply: their tokens in turns, -1 after the end of the shorter one."""

    _task: PreferenceTaskConfig

    def read(self, values: Mapping[str, Any]) -> Target:
        better = self._renderer.reply_ids(self._task.reply(values))
        try:
            worse = self._renderer.reply_ids(self._task.rejected_reply(values))
        except InvalidInputError as error:
            raise InvalidInputError(f"{self._task.rejected}: {error}") from None
        pairs = zip_longest(better, worse, fillvalue=-1)
        return [*self._task.group(values), *(float(token) for pair in pairs for token in pair)]


def target_reader(task: TaskConfig, inputs: Mapping[str, Input]) -> TargetReader:
    """Return the reader of a task's targets. `inputs`: the job's inputs."""
    reader: TargetReader = import_object(task.target_reader)(task, inputs)
    return reader


def check_targets(job: Job) -> None:
    """Raise DataError if no target of a task can be read, such as replies without a tokenizer."""
    for name, task in job.tasks.items():
        try:
            target_reader(task, job.inputs).check()
        except DataError as error:
            raise DataError(f"tasks.{name}.{error}") from None
