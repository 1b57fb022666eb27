"""Files in the messages of dialogues, in the forms of OpenAI and Hugging Face."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rayfuse.errors import InvalidInputError
from rayfuse.spec.cells import parse_json

FILE_PARTS = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
}
"""Types of parts with a file → types of the inputs that read them."""

_CONTENT_KEYS = ("image", "image_url", "audio", "audio_url", "input_audio", "url", "path", "base64")
_MEDIA_TYPES = {"image": "image/png", "audio": "audio/wav"}


def as_messages(value: Any) -> Sequence[Any] | None:
    """Return the list of messages in a value or a JSON text; None for a value that is not a dialogue."""
    value = parse_json(value) if isinstance(value, str) else _as_list(value)
    is_dialogue = isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Mapping)
    return value if is_dialogue and not {"role", "from"}.isdisjoint(value[0]) else None


def file_parts(value: Any, kind: str, max_items: int) -> Any:
    """Return the files of one type in the messages of a dialogue, as rows name them; other values unchanged.

    A list, or the only file with `max_items` of 1; None without files. Raises InvalidInputError if there are more.
    """
    messages = as_messages(value)
    if messages is None:
        return value
    files = [file for file in (_content(part, kind) for part in _parts(messages, kind)) if file is not None]
    if max_items > 1:
        return files or None
    if len(files) > 1:
        raise InvalidInputError(
            f"the messages have {len(files)} parts of type {kind}, above max_items 1; raise max_items"
        )
    return files[0] if files else None


def _as_list(value: Any) -> Any:
    """Return an array as a list, as frames have them; other values unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value


def _parts(messages: Sequence[Any], kind: str) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        content = _as_list(message.get("content")) if isinstance(message, Mapping) else None
        for part in content if isinstance(content, (list, tuple)) else ():
            if isinstance(part, Mapping) and FILE_PARTS.get(str(part.get("type"))) == kind:
                yield part


def _content(part: Mapping[str, Any], kind: str) -> Any:
    """Return the path, URL or bytes in a part; None for a part that only marks the place of a file."""
    key = next((key for key in _CONTENT_KEYS if part.get(key) is not None), None)
    value = None if key is None else part[key]
    if isinstance(value, Mapping) and "data" in value:  # OpenAI's input_audio
        key, value = "base64", value["data"]
    elif isinstance(value, Mapping) and "url" in value:
        value = value["url"]
    return (
        f"data:{_MEDIA_TYPES[kind]};base64,{value}" if key == "base64" and isinstance(value, str) else value
    )
