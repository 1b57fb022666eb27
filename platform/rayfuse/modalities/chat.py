"""Dialogues, whose messages a generation task puts into its prompt."""

from typing import Any

from rayfuse.errors import InvalidInputError, MissingInputError
from rayfuse.modalities.base import Features, Modality, Schema, object_schema, pad
from rayfuse.modalities.messages import ROLES, Message, dump_messages, parse_messages
from rayfuse.modalities.text import NO_BYTE, PROMPT_TEXT, encode_text
from rayfuse.spec.base import is_missing
from rayfuse.spec.inputs import ChatInput
from rayfuse.spec.message_parts import FILE_PARTS

_BYTES_PER_TOKEN = 4
"""Average of the tokenizers of language models on English text."""


def reply_of(value: Any) -> str:
    """Return the text of the last message, an assistant's. Raises InvalidInputError if there is none."""
    messages = [] if is_missing(value) else parse_messages(value)
    if not messages or messages[-1].role != "assistant":
        found = f"has the role {messages[-1].role}" if messages else "is missing"
        raise InvalidInputError(
            f"the last message {found}; it must be the assistant's reply, unless the task has another `column`"
        )
    return messages[-1].text


class ChatModality(Modality):
    """Lists of messages.

    Features: `utf8`, int64 (bytes,), the messages as JSON, padded with `NO_BYTE`; a generation task renders them.
    """

    options: ChatInput
    value_formats = ("json",)
    media_types = ("application/json", "text/plain", "application/octet-stream")

    def decode(self, value: Any) -> list[Message]:
        """Return the messages up to the last one of a user.

        The reply behind it, in rows that have it, is left out. Raises InvalidInputError with the index of a message that
        is invalid, and MissingInputError for an empty list.
        """
        messages = parse_messages(value)
        if self.options.with_reply and messages and messages[-1].role == "assistant":
            messages.pop()
        if not messages:
            raise MissingInputError("the list of messages is empty")
        if messages[-1].role != "user":
            raise InvalidInputError(
                f"[{len(messages) - 1}]: the last message has the role {messages[-1].role}; it must be a user's"
            )
        return messages

    def content(self, value: Any) -> str:
        return dump_messages(self.decode(value))

    def process(self, decoded: list[Message]) -> Features:
        return {PROMPT_TEXT: encode_text(dump_messages(decoded))}

    def num_steps(self, decoded: list[Message]) -> int:
        """Return about the number of tokens."""
        num_bytes = sum(len(message.text.encode()) for message in decoded)
        return min(self.options.max_tokens, num_bytes // _BYTES_PER_TOKEN + 1)

    def dummy_features(self) -> Features:
        return self.process([Message("user", "a")])

    def longest_features(self, as_words: bool = False) -> Features:
        return self.process([Message("user", "a " * self.options.max_tokens)])

    def collate(self, rows: list[Features]) -> Features:
        return {PROMPT_TEXT: pad([row[PROMPT_TEXT] for row in rows], 0, NO_BYTE)}

    def json_schema(self) -> Schema:
        text = {"type": "string"}
        part = object_schema({"type": {"const": "text"}, "text": text})
        file = object_schema({"type": {"enum": list(FILE_PARTS)}})
        parts = {"type": "array", "minItems": 1, "items": {"anyOf": [part, file]}}
        content = {"anyOf": [text, parts]}
        message = object_schema({"role": {"enum": list(ROLES)}, "content": content})
        return {"type": "array", "minItems": 1, "items": message}

    def example(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": "What is this?"}]

    def description(self) -> str:
        return f"messages of a dialogue, the last one a user's; the newest are read, up to {self.options.max_tokens} tokens"
