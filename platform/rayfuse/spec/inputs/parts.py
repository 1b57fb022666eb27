"""Inputs whose values may be parts of messages."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rayfuse.spec.base import Key, Problems
from rayfuse.spec.cells import CellType
from rayfuse.spec.inputs.base import ColumnInput
from rayfuse.spec.inputs.chat import ChatInput
from rayfuse.spec.message_parts import file_parts

if TYPE_CHECKING:
    from rayfuse.spec.job import Job


class PartInput(ColumnInput):
    """Options of an input of files, which may be parts of the messages of a dialogue."""

    part_of: Key | None = None
    """A dialogue whose parts of this type are the values, in the order of the messages: their soft tokens stand in the place
    of the part. `column` is by default the dialogue's, and requests need not contain the input."""

    @property
    def dialogue(self) -> str | None:
        return self.part_of

    @property
    def fallback_input(self) -> str | None:
        return self.part_of

    @property
    def source_columns(self) -> dict[str, CellType]:
        return {self.column: "json"} if self.part_of is not None else super().source_columns

    def read(self, values: Mapping[str, Any]) -> Any:
        return self.of_fallback(super().read(values))

    def of_fallback(self, value: Any) -> Any:
        return value if self.part_of is None else file_parts(value, self.type, self.max_items)

    def validate_in_job(self, job: "Job") -> Problems:
        if self.part_of is None:
            return
        dialogues = [name for name, source in job.inputs.items() if isinstance(source, ChatInput)]
        if self.part_of not in dialogues:
            known = f"one of: {', '.join(dialogues)}" if dialogues else "this job has none"
            yield "part_of", f"no dialogue `{self.part_of}`; {known}"
        elif not self.optional:
            yield "optional", f"messages of `{self.part_of}` may have no {self.type}; set optional: true"
        elif any(
            other is not self and other.type == self.type and other.dialogue == self.part_of
            for other in job.inputs.values()
        ):
            yield (
                "part_of",
                f"two inputs read the parts of type {self.type} of `{self.part_of}`; remove one of them",
            )
