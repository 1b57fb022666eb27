"""Grammar of the replies of a generation task with a JSON schema."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from rayfuse.data.targets import check_targets, read_json_schema
from rayfuse.decoding.constraint import TokenConstraint
from rayfuse.errors import InvalidInputError, SpecError
from rayfuse.modalities.prompt_kinds import build_renderer
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import GenerationTaskConfig

if TYPE_CHECKING:
    from rayfuse.decoding.json_schema import JsonSchemaConstraint


class ReplyGrammar:
    """Restricts the replies of a task to the texts that follow its JSON schema; it is compiled at its first use.

    stop_ids: tokens that end a reply, in addition to that of the prompt's template. Calling it returns what restricts one
    reply, None for a task without a schema; raises SpecError or InvalidInputError if the schema cannot be used.
    """

    def __init__(
        self, task: GenerationTaskConfig, renderer: PromptRenderer, stop_ids: Sequence[int] = ()
    ) -> None:
        self._task, self._renderer, self._stop_ids = task, renderer, stop_ids

    def __call__(self) -> TokenConstraint | None:
        return None if self._task.json_schema is None else self._start.copy()

    def check(self) -> None:
        """Raise SpecError if the schema cannot be used, or if no reply can be finished within `max_tokens`."""
        if self._task.json_schema is not None:
            try:
                self._start.check_budget(self._task.max_tokens)
            except InvalidInputError as error:
                raise SpecError(f"{error.input_name}: {error.reason}") from None

    @cached_property
    def _start(self) -> "JsonSchemaConstraint":
        from rayfuse.decoding.json_schema import GrammarVocabulary  # imports transformers

        assert self._task.json_schema is not None
        vocabulary = GrammarVocabulary(self._renderer.tokenizer, [self._renderer.end_id, *self._stop_ids])
        return vocabulary.json_schema(read_json_schema(self._task.json_schema))


def check_tasks(job: Job) -> None:
    """Raise DataError or SpecError if targets of a task cannot be read, or no reply can follow its JSON schema."""
    check_targets(job)
    for name, task in job.tasks.items():
        if isinstance(task, GenerationTaskConfig):
            try:
                ReplyGrammar(task, build_renderer(task, job.inputs)).check()
            except SpecError as error:
                raise SpecError(f"tasks.{name}.{error}") from None
