"""Reduction of dialogues to the length that an input allows."""

from collections.abc import Callable, Sequence

from rayfuse.errors import InvalidInputError
from rayfuse.modalities.dialogues import Dialogue, drop_oldest, split_messages
from rayfuse.modalities.messages import Message
from rayfuse.modalities.turns import TurnRenderer

_MAX_CHARS_PER_TOKEN, _MIN_CHARS = 100, 10_000
"""Characters of a dialogue above which it is not tokenized, as it cannot fit: 100 per token, and 10,000 more."""


class DialogueFitter:
    """Removal of the oldest turns of dialogues that are too long.

    limit: largest number of tokens of a prompt; count: returns the number for a dialogue and the text of its last message.
    """

    def __init__(
        self, input_name: str, limit: int, turns: TurnRenderer, count: Callable[[Dialogue, str], int]
    ) -> None:
        self._input_name = input_name
        self._limit = limit
        self._turns = turns
        self._count = count

    def fit(self, messages: Sequence[Message]) -> Dialogue:
        """Return a dialogue that fits. Raises InvalidInputError with the input if the messages cannot be rendered or fitted."""
        try:
            self._turns.check_roles(messages)
        except InvalidInputError as error:
            raise error.for_input(self._input_name) from None
        last = messages[-1].text
        fitting = drop_oldest(split_messages(messages), lambda dialogue: self._fits(dialogue, last))
        if fitting is None:
            raise InvalidInputError(
                f"[{len(messages) - 1}]: the last message, with the system's and the words of the prompt, exceeds max_tokens "
                f"{self._limit}; shorten it, or raise inputs.{self._input_name}.max_tokens",
                self._input_name,
            )
        return fitting

    def _fits(self, dialogue: Dialogue, last: str) -> bool:
        num_chars = sum(len(turn.text) for turn in dialogue.turns) + len(last) + len(dialogue.system or "")
        has_few = num_chars <= _MAX_CHARS_PER_TOKEN * self._limit + _MIN_CHARS
        return has_few and self._count(dialogue, last) <= self._limit
