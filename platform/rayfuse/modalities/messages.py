"""Messages of dialogues, in the forms of OpenAI and Hugging Face, and of ShareGPT."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rayfuse.errors import InvalidInputError
from rayfuse.formatting import truncated_repr
from rayfuse.spec.base import is_missing
from rayfuse.spec.cells import parse_json

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""Names of roles in messages → roles of chat templates."""

_KEYS = (("role", "content"), ("from", "value"))
_UNSUPPORTED = ("tool_calls", "function_call")


class Message(NamedTuple):
    """A message of a dialogue."""

    role: str
    """system, user or assistant."""
    text: str


def parse_messages(value: Any) -> list[Message]:
    """Return the messages in a list or a JSON text. Raises InvalidInputError with the index of a message that is invalid."""
    value = parse_json(value) if isinstance(value, str) else value
    if not isinstance(value, (list, tuple)):
        raise InvalidInputError(
            f'expected a list of messages {{"role": …, "content": …}}, got {truncated_repr(value, 40)}'
        )
    return [_parse_message(message, f"[{index}]") for index, message in enumerate(value)]


def last_question(value: Any) -> str | None:
    """Return the text of the last message of a user in a list or a JSON text; None for a value that is not a dialogue.

    Raises InvalidInputError if a message is invalid, or none is a user's.
    """
    value = parse_json(value) if isinstance(value, str) else value
    if not isinstance(value, (list, tuple)) or not value or not isinstance(value[0], Mapping):
        return None
    questions = [message.text for message in parse_messages(value) if message.role == "user"]
    if not questions:
        raise InvalidInputError("none of the messages is a user's")
    return questions[-1]


def dump_messages(messages: Sequence[Message]) -> str:
    """Return messages as a JSON text, which `load_messages` reads."""
    return json.dumps(messages, ensure_ascii=False)


def load_messages(text: str) -> list[Message]:
    """Return the messages in a text of `dump_messages`."""
    return [Message(*message) for message in json.loads(text)]


def _parse_message(message: Any, path: str) -> Message:
    if not isinstance(message, Mapping):
        raise InvalidInputError(f"{path}: expected a message, got {truncated_repr(message, 40)}")
    role_key, content_key = next((keys for keys in _KEYS if keys[0] in message), _KEYS[0])
    role = message.get(role_key)
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(ROLES)
        raise InvalidInputError(
            f"{path}.{role_key}: {truncated_repr(role, 40)} is no role; use one of {known}"
        )
    for name in _UNSUPPORTED:
        if not is_missing(message.get(name)):
            raise InvalidInputError(f"{path}.{name} is not supported; leave the message out")
    return Message(ROLES[role], _parse_content(message.get(content_key), f"{path}.{content_key}"))


def _parse_content(content: Any, path: str) -> str:
    if isinstance(content, (list, tuple)) and content:
        return "".join(_parse_part(part, f"{path}[{index}]") for index, part in enumerate(content))
    return _check_text(content, path)


def _parse_part(part: Any, path: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text":
        raise InvalidInputError(
            f"{path}.type: {truncated_repr(kind, 40)} is not supported; use text, and separate inputs for files"
        )
    return _check_text(part.get("text"), f"{path}.text")


def _check_text(text: Any, path: str) -> str:
    if not isinstance(text, str):
        raise InvalidInputError(f"{path}: {truncated_repr(text, 40)} is not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{path}: lone surrogate \\u{ord(text[error.start]):x} at position {error.start}; encode the text as UTF-8"
        ) from None
    return text
