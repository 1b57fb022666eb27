"""Messages of OpenAI requests, with their images and sounds."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, get_args

from rayfuse.data.base64_values import decode_base64, decode_data_uri, is_data_uri
from rayfuse.errors import InvalidInputError
from rayfuse.formatting import truncated_repr
from rayfuse.serving.openai_errors import OpenAIError
from rayfuse.serving.openai_generator import ChatMessage, FilePart, Role, TextPart

Fetch = Callable[[str], Awaitable[bytes]]
"""Downloads the file of a URL; raises InvalidInputError if that is not allowed or fails."""

_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image_url", "input_image")
_SOUND_FORMATS = ("wav", "mp3", "flac", "ogg")


async def read_messages(
    messages: list[dict[str, Any]], fetch: Fetch | None, param: str = "messages"
) -> tuple[ChatMessage, ...]:
    """Return the messages with their files. Raises OpenAIError with the path of what is wrong."""
    tasks = (_read_message(message, fetch, f"{param}.{index}") for index, message in enumerate(messages))
    return tuple(await asyncio.gather(*tasks))


async def _read_message(message: Mapping[str, Any], fetch: Fetch | None, path: str) -> ChatMessage:
    role: Any = message.get("role")
    if role not in get_args(Role):
        roles = ", ".join(get_args(Role))
        raise OpenAIError(
            400,
            f"{path}.role: {truncated_repr(role)} is no role; use one of {roles}",
            f"{path}.role",
            "invalid_value",
        )
    for name in ("tool_calls", "function_call"):
        if message.get(name):
            raise OpenAIError(
                400,
                f"{path}.{name} is not supported by this endpoint",
                f"{path}.{name}",
                "unsupported_parameter",
            )
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise OpenAIError(
            400,
            f"{path}.content: {truncated_repr(content)} is not allowed; send a text or a list of parts",
            f"{path}.content",
            "invalid_value",
        )
    parts = [await _read_part(part, fetch, f"{path}.content.{index}") for index, part in enumerate(content)]
    return ChatMessage(role, tuple(parts), message.get("name"))


async def _read_part(part: Any, fetch: Fetch | None, path: str) -> TextPart | FilePart:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_TYPES:
        text = part.get("text")
        if not isinstance(text, str):
            raise _invalid(f"{path}.text", f"{truncated_repr(text)} is not a text")
        return TextPart(text)
    if kind in _IMAGE_TYPES:
        value = part.get("image_url")
        url = value.get("url") if isinstance(value, dict) else value
        return FilePart("image", await _read_url(url, fetch, f"{path}.image_url"))
    if kind == "input_audio":
        return FilePart("audio", _read_audio(part.get("input_audio"), f"{path}.input_audio"))
    raise _invalid(
        f"{path}.type", f"{truncated_repr(kind)} is no kind of part; use text, image_url or input_audio"
    )


async def _read_url(url: Any, fetch: Fetch | None, path: str) -> bytes:
    if not isinstance(url, str) or not url:
        raise _invalid(path, f"{truncated_repr(url)} is no URL; send data:image/png;base64,… or an https URL")
    try:
        if is_data_uri(url):
            return decode_data_uri(url)
        if fetch is None:
            raise _invalid(path, "this endpoint fetches no URLs; send the file as data:image/png;base64,…")
        return await fetch(url)
    except (ValueError, InvalidInputError) as error:
        raise _invalid(path, str(error)) from None


def _read_audio(value: Any, path: str) -> bytes:
    if not isinstance(value, dict) or not isinstance(value.get("data"), str):
        raise _invalid(path, 'it must be {"data": base64 of the file, "format": "wav"}')
    given = value.get("format", "wav")
    if given not in _SOUND_FORMATS:
        formats = ", ".join(_SOUND_FORMATS)
        raise _invalid(f"{path}.format", f"{truncated_repr(given)} is not supported; use one of {formats}")
    try:
        return decode_base64(value["data"])
    except ValueError as error:
        raise _invalid(f"{path}.data", str(error)) from None


def _invalid(path: str, reason: str) -> OpenAIError:
    return OpenAIError(400, f"{path}: {reason}", path, "invalid_value")
