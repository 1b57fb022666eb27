"""Dialogues as a prompt has them: the system's turn, earlier turns and the last user's turn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rayfuse.modalities.messages import FileRef, Message


@dataclass(frozen=True)
class Dialogue:
    """Turns of a prompt other than the user's turn that the inputs fill."""

    system: str | None = None
    """The system's turn, in the place of the task's."""
    turns: tuple[Message, ...] = ()
    """Earlier turns in their order."""
    text: str | None = None
    """Words of the last user's turn, in the place of those of the task's prompt."""
    files: tuple[FileRef, ...] = ()
    """Files in the last user's turn."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of all turns up to the last user's."""
        system = ("system",) if self.system else ()
        return (*system, *(turn.role for turn in self.turns), "user")


def split_messages(messages: Sequence[Message]) -> Dialogue:
    """Return a dialogue from messages, the last of which is a user's; system messages at the beginning are one turn."""
    leading = next((index for index, one in enumerate(messages) if one.role != "system"), len(messages))
    system = "\n".join(one.text for one in messages[:leading]) or None
    return Dialogue(system, tuple(messages[leading:-1]), files=messages[-1].files)


def drop_oldest(dialogue: Dialogue, fits: Callable[[Dialogue], bool]) -> Dialogue | None:
    """Return a dialogue without as few of its oldest turns as it takes to fit; None if its last turn alone does not.

    What remains begins with a user's turn, as chat templates expect; system messages among the turns are not dropped.
    """
    if fits(dialogue):
        return dialogue
    turns = dialogue.turns
    starts = [0, *(index for index, turn in enumerate(turns) if index and turn.role == "user"), len(turns)]

    def shortened(start: int) -> Dialogue:
        kept = [turn for turn in turns[:start] if turn.role == "system"]
        return replace(dialogue, turns=(*kept, *turns[start:]))

    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        if fits(shortened(starts[middle])):
            high = middle
        else:
            low = middle + 1
    return shortened(starts[low]) if low < len(starts) else None
