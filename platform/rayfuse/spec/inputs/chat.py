"""Dialogues."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfuse.spec.base import Problems
from rayfuse.spec.encoders import ChatEncoderConfig, PromptEncoderConfig
from rayfuse.spec.inputs.base import ColumnInput

if TYPE_CHECKING:
    from rayfuse.spec.job import Job


class ChatInput(ColumnInput):
    """A dialogue, as a list of messages {"role": …, "content": …}, for the prompt of a generation task.

    ShareGPT's {"from": …, "value": …} are messages too.
    """

    holds_lists: ClassVar[bool] = True
    length_field: ClassVar[str | None] = "max_tokens"

    type: Literal["chat"]
    encoder: ChatEncoderConfig = PromptEncoderConfig(type="prompt")
    """`prompt`: the messages are turns of the prompt of a generation task."""
    max_tokens: int = Field(1024, ge=1, le=131072)
    """Largest number of tokens of a prompt, without those of its other inputs: whole turns are left out, the oldest first,
    but never the system's and the last one."""
    with_reply: bool = False
    """True if the last message of a row is the reply that a generation task learns. Set if the task has the same
    `column`."""

    def validate_in_job(self, job: "Job") -> Problems:
        if not isinstance(self.encoder, PromptEncoderConfig):
            yield "encoder.type", f"{self.encoder.type} cannot encode a dialogue; leave encoder out"
        if self.max_items > 1:
            yield "max_items", f"{self.max_items} is not 1, and a row has one dialogue; leave it out"
        if self.with_reply and not any(
            task.target_column == self.column and task.type == "generation" for task in job.tasks.values()
        ):
            yield (
                "with_reply",
                f"no generation task has `column: {self.column}`; set it there, or leave with_reply out",
            )


def with_replies(content: dict[str, Any]) -> dict[str, Any]:
    """Return a job's content with `with_reply` of dialogues whose column is that of a generation task."""
    inputs, tasks = content.get("inputs"), content.get("tasks")
    if not isinstance(inputs, dict) or not isinstance(tasks, dict):
        return content
    targets = [
        task.get("column", name)
        for name, task in tasks.items()
        if isinstance(task, dict) and task.get("type") == "generation"
    ]
    filled = {
        name: {"with_reply": True, **options}
        if isinstance(options, dict)
        and options.get("type") == "chat"
        and options.get("column", name) in targets
        else options
        for name, options in inputs.items()
    }
    return {**content, "inputs": filled}
