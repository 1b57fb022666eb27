"""Turns of a prompt: the texts that a chat template puts around them, and the contents of earlier ones."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from rayfuse.errors import DataError, InvalidInputError
from rayfuse.modalities.chat_templates import ChatTemplate, Frame
from rayfuse.modalities.dialogues import Dialogue, split_messages
from rayfuse.modalities.messages import Message, without_marks
from rayfuse.modalities.plain_tokenizer import PlainTokenizer


class TurnRenderer:
    """Texts before and after the user's turn of a prompt.

    template: None for models that know no turns. system: the system's turn of prompts that have no other one.
    """

    def __init__(self, plain: PlainTokenizer, template: ChatTemplate | None, system: str | None) -> None:
        self._plain = plain
        self._template = template
        self._system = system

    def surround(self, dialogue: Dialogue) -> list[str]:
        """Return texts and earlier replies in turns, then the texts before and after the user's turn.

        White space around turns, and names of special tokens in those of a request, are removed. Raises DataError if the
        template does not take the task's own turns, InvalidInputError if it does not take those of a request.
        """
        dialogue = self._cleaned(dialogue)
        if self._template is None:
            if dialogue.turns:
                reason = "this model has no chat template, so that it answers single messages; send one"
                raise InvalidInputError(reason, "messages")
            return [f"{dialogue.system}\n" if dialogue.system else "", ""]
        frame = self._frame(self._template, dialogue)
        contents = [*([dialogue.system] if dialogue.system else []), *(turn.text for turn in dialogue.turns)]
        found = [frame[0]]
        for role, content, following in zip(dialogue.roles, contents, frame[1:], strict=False):
            if role == "assistant":
                prefix = self.reply_prefix if found[-1].endswith(self.reply_prefix) else ""
                found[-1] = found[-1].removesuffix(prefix)
                found += [prefix + content, following]
            else:
                found[-1] += content + following
        return [*found, frame[-1]]

    def check_roles(self, messages: Sequence[Message]) -> None:
        """Raise InvalidInputError with the index of the message that the chat template does not take."""
        assert self._template is not None
        dialogue = split_messages(messages)
        roles = self._cleaned(dialogue).roles
        try:
            self._template.frame(roles)
        except DataError as error:
            number = self._template.first_rejected(roles)
            num_system = len(messages) - len(dialogue.turns) - 1
            index = max(0, number - (roles[0] == "system") + num_system)
            raise InvalidInputError(
                f"[{index}]: the chat template takes no message of the role {roles[number]} there: {error.__cause__}"
            ) from None

    @property
    def reply_prefix(self) -> str:
        """White space that the template puts before a reply."""
        return self._reply_frame[0]

    @property
    def reply_end(self) -> str:
        """Text after a reply; empty for models that know no turns."""
        return self._reply_frame[1]

    @cached_property
    def _reply_frame(self) -> tuple[str, str]:
        if self._template is None:
            return "", ""
        roles = ["system", "user"] if self._system else ["user"]
        opened = self._template.frame(roles)[-1]
        *_, opening, end = self._template.frame([*roles, "assistant"], ask=False)
        prefix = opening.removeprefix(opened) if opening.startswith(opened) else ""
        return prefix if prefix.isspace() else "", end

    def _cleaned(self, dialogue: Dialogue) -> Dialogue:
        """Return a dialogue with the system's turn that it has in the prompt, and without names of special tokens."""
        clean = self._plain.clean
        texts = (clean(turn.text if turn.files else without_marks(turn.text)) for turn in dialogue.turns)
        turns = tuple(
            turn._replace(text=text.strip()) for turn, text in zip(dialogue.turns, texts, strict=True)
        )
        system = self._system if dialogue.system is None else clean(without_marks(dialogue.system))
        return replace(dialogue, system=(system or "").strip() or None, turns=turns)

    def _frame(self, template: ChatTemplate, dialogue: Dialogue) -> Frame:
        try:
            return template.frame(dialogue.roles)
        except DataError as error:
            if not dialogue.turns and dialogue.system == ((self._system or "").strip() or None):
                raise
            raise InvalidInputError(
                f"the model's chat template does not take these messages: {error.__cause__}", "messages"
            ) from None
