"""Messages of dialogues, in the forms of OpenAI and Hugging Face, and of ShareGPT."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rayfuse.errors import InvalidInputError
from rayfuse.formatting import truncated_repr
from rayfuse.modalities.base import check_unicode
from rayfuse.spec.base import is_missing
from rayfuse.spec.cells import parse_json
from rayfuse.spec.message_parts import FILE_PARTS, as_messages

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


FILE_MARK = "\ufffc"
"""Character in the place of a file in the text of a message."""


class FileRef(NamedTuple):
    """A file of a dialogue."""

    kind: str
    """Type of the input that reads it: image or audio."""
    item: int
    """Number of the file among those of its type, from 0."""


class Message(NamedTuple):
    """A message of a dialogue."""

    role: str
    """system, user or assistant."""
    text: str
    """Text, with a `FILE_MARK` for each of its files."""
    files: tuple[FileRef, ...] = ()
    """Files in the text."""


def parse_messages(value: Any) -> list[Message]:
    """Return the messages in a list or a JSON text. Raises InvalidInputError with the index of a message that is invalid."""
    value = parse_json(value) if isinstance(value, str) else value
    if not isinstance(value, (list, tuple)):
        raise InvalidInputError(
            f'expected a list of messages {{"role": …, "content": …}}, got {truncated_repr(value, 40)}'
        )
    counts: Counter[str] = Counter()
    return [_parse_message(message, f"[{index}]", counts) for index, message in enumerate(value)]


def last_question(value: Any) -> str | None:
    """Return the text of the last message of a user in a list or a JSON text; None for a value that is not a dialogue.

    Raises InvalidInputError if a message is invalid, or none is a user's.
    """
    messages = as_messages(value)
    if messages is None:
        return None
    questions = [message.text for message in parse_messages(messages) if message.role == "user"]
    if not questions:
        raise InvalidInputError("none of the messages is a user's")
    return without_marks(questions[-1])


def without_marks(text: str) -> str:
    """Return a text that a user wrote without characters that would stand for a file."""
    return text.replace(FILE_MARK, "")


def count_files(messages: Sequence[Message]) -> Counter[str]:
    """Return the number of files in messages by their type."""
    return Counter(file.kind for message in messages for file in message.files)


def dump_messages(messages: Sequence[Message]) -> str:
    """Return messages as a JSON text, which `load_messages` reads."""
    return json.dumps(messages, ensure_ascii=False)


def load_messages(text: str) -> list[Message]:
    """Return the messages in a text of `dump_messages`."""
    return [
        Message(role, content, tuple(FileRef(*file) for file in files))
        for role, content, files in json.loads(text)
    ]


def _parse_message(message: Any, path: str, counts: Counter[str]) -> Message:
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
    text, kinds = _parse_content(message.get(content_key), f"{path}.{content_key}")
    if kinds and ROLES[role] != "user":
        raise InvalidInputError(f"{path}.{content_key}: only messages of a user have files; remove them")
    files = []
    for kind in kinds:
        files.append(FileRef(kind, counts[kind]))
        counts[kind] += 1
    return Message(ROLES[role], text, tuple(files))


def _parse_content(content: Any, path: str) -> tuple[str, list[str]]:
    """Return the text of a message, with a mark for each file, and the types of the files."""
    if not isinstance(content, (list, tuple)) or not content:
        return _check_text(content, path), []
    parts = [_parse_part(part, f"{path}[{index}]") for index, part in enumerate(content)]
    texts = [FILE_MARK if isinstance(part, FileRef) else part for part in parts]
    return "".join(texts), [part.kind for part in parts if isinstance(part, FileRef)]


def _parse_part(part: Any, path: str) -> str | FileRef:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return _check_text(part.get("text"), f"{path}.text")
    if kind in FILE_PARTS:
        return FileRef(FILE_PARTS[kind], 0)
    known = ", ".join(("text", *FILE_PARTS))
    raise InvalidInputError(f"{path}.type: {truncated_repr(kind, 40)} is not supported; use one of {known}")


def _check_text(text: Any, path: str) -> str:
    if not isinstance(text, str):
        raise InvalidInputError(f"{path}: {truncated_repr(text, 40)} is not a text")
    check_unicode(text, f"{path}: ")
    return without_marks(text)
