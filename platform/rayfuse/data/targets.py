"""Targets of rows, by task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rayfuse.data.json_files import read_json_object
from rayfuse.errors import DataError, InvalidInputError, MissingInputError, SpecError
from rayfuse.modalities.chat import ChatModality, reply_of
from rayfuse.modalities.prompt_kinds import build_renderer
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.spec.base import is_missing
from rayfuse.spec.family import import_object
from rayfuse.spec.inputs import ChatInput, Input
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import GenerationTaskConfig, PreferenceTaskConfig, Target, TaskConfig

if TYPE_CHECKING:
    from rayfuse.modalities.json_grammar import JsonTexts


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
        """Raise DataError or SpecError, with the field of the task, if no target can be read.

        Called before a job starts.
        """


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
        values, earlier = self._read_dialogue(values)
        replies = [*(earlier if self._task.learned_replies == "all" else ()), self._reply_ids(values)]
        return [*self._task.group(values), *(float(token) for reply in replies for token in reply)]

    def check(self) -> None:
        """Raise DataError if the tokenizer or chat template of the language model cannot be used, or is too short.

        Each input with an encoder counts as one soft token here; the workers know their number. Raises SpecError if the
        JSON schema of replies cannot be used.
        """
        if self._task.json_schema is not None:
            self._check_schema()
        try:
            self._renderer.check_messages()
            self._renderer.check_context(len(self._renderer.span_inputs))
        except DataError as error:
            raise DataError(f"model: {error}") from None

    def _read_dialogue(self, values: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[list[int]]]:
        """Return a row with the reply in its own column, and the tokens of the replies in earlier turns of its dialogue.

        Raises InvalidInputError if the language model cannot read the dialogue.
        """
        name, earlier = self._renderer.chat_input, []
        if name is None:
            return values, []
        source = self._inputs[name]
        assert isinstance(source, ChatInput)
        value = source.read(values)
        if source.with_reply and source.column == self._task.column:
            values = {**values, source.column: reply_of(value)}
        if not is_missing(value):
            try:
                fitting = self._renderer.fit_messages(ChatModality(source).decode(value))
                earlier = self._renderer.earlier_replies(fitting)
            except MissingInputError:
                pass  # reported with the input, if it is required
            except InvalidInputError as error:
                raise error.for_input(name) from None
        return values, earlier

    def _reply_ids(self, values: Mapping[str, Any]) -> list[int]:
        """Return the tokens of a row's reply. Raises InvalidInputError if there is none that can be learned."""
        reply = self._task.reply(values)
        return self._renderer.reply_ids(self._json_texts.normalize(reply) if self._json_texts else reply)

    @cached_property
    def _json_texts(self) -> "JsonTexts | None":
        """Texts that follow the task's JSON schema; None without one."""
        if self._task.json_schema is None:
            return None
        from rayfuse.modalities.json_grammar import JsonTexts

        return JsonTexts(read_json_schema(self._task.json_schema))

    def _check_schema(self) -> None:
        try:
            assert self._json_texts is not None
        except InvalidInputError as error:
            raise SpecError(f"json_schema: {error.reason}; correct it, or leave it out") from None
        except SpecError as error:
            raise SpecError(f"json_schema: {error}") from None


class PairReader(ReplyReader):
    """Reader of pairs of a better and a worse reply: their tokens in turns, -1 after the end of the shorter one."""

    _task: PreferenceTaskConfig

    def read(self, values: Mapping[str, Any]) -> Target:
        values, _ = self._read_dialogue(values)
        better = self._reply_ids(values)
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
    """Raise DataError or SpecError if no target of a task can be read, such as replies without a tokenizer."""
    for name, task in job.tasks.items():
        try:
            target_reader(task, job.inputs).check()
        except (DataError, SpecError) as error:
            raise type(error)(f"tasks.{name}.{error}") from None


def read_json_schema(given: dict[str, Any] | str) -> dict[str, Any]:
    """Return a JSON schema that a task has or names. Raises SpecError if its file cannot be read."""
    return read_json_object(given) if isinstance(given, str) else given


def embed_json_schemas(tasks: Mapping[str, TaskConfig]) -> dict[str, TaskConfig]:
    """Return tasks with the JSON schemas that they name, so that a stored job needs no other file."""
    return {
        name: task.model_copy(update={"json_schema": read_json_schema(task.json_schema)})
        if isinstance(task, GenerationTaskConfig) and task.json_schema is not None
        else task
        for name, task in tasks.items()
    }
