"""Options of texts that go into the prompt of a generation task as they are."""

from typing import TYPE_CHECKING, Literal

from rayfuse.spec.base import Problems
from rayfuse.spec.encoders.base import BaseEncoderConfig

if TYPE_CHECKING:
    from rayfuse.spec.job import Job


class PromptEncoderConfig(BaseEncoderConfig):
    """No encoder: the text or dialogue is put into the prompt of a generation task. Other tasks see only that it is present."""

    type: Literal["prompt"]

    def validate_in_job(self, job: "Job") -> Problems:
        own = [name for name, options in job.inputs.items() if options.encoder is self]
        named = {
            name
            for task in job.tasks.values()
            for _, name in getattr(task, "prompt_parts", lambda inputs: [])(job.inputs)
        }
        for name in own:
            if name not in named:
                remedy = "" if job.inputs[name].type == "chat" else ", or use another encoder"
                yield (
                    "type",
                    f"prompt puts the value into the prompt of a generation task, and none names {{{name}}}; name it "
                    f"there{remedy}",
                )
            if job.inputs[name].augment:
                yield "type", f"prompt has no tokens to augment; remove inputs.{name}.augment"
