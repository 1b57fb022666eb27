"""Files as texts: base64 as people and browsers write it, and `data:` URIs (RFC 2397)."""

import base64
import binascii
import string
from urllib.parse import unquote_to_bytes

from rayfuse.formatting import truncate

_SCHEME = "data:"
_URL_SAFE = str.maketrans("-_", "+/", string.whitespace)
_CHUNK_CHARS = 1 << 16


def is_data_uri(text: str) -> bool:
    """Return whether a text is a `data:` URI, as browsers give for a file."""
    return text.lstrip()[: len(_SCHEME)].lower() == _SCHEME


def decode_base64(text: str) -> bytes:
    """Decode base64 of either alphabet, with or without white space, padding and the beginning of a `data:` URI.

    Raises ValueError with the reason.
    """
    if is_data_uri(text):
        return decode_data_uri(text)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        compact = text.translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64: {error}") from None


def decode_data_uri(text: str) -> bytes:
    """Decode the content of a `data:` URI. Raises ValueError with the reason."""
    header, comma, content = text.strip().partition(",")
    if not comma:
        raise ValueError(f"{truncate(header)}: a data: URI without a comma; write data:image/png;base64,…")
    if header.lower().endswith(";base64"):
        return decode_base64(_decode_percent(content).decode("latin-1"))
    return _decode_percent(content)


def _decode_percent(text: str) -> bytes:
    """Decode %XX in parts, as `urllib` builds an object for each."""
    decoded = bytearray()
    start = 0
    while start < len(text):
        end = start + _CHUNK_CHARS
        if (place := text.rfind("%", end - 2, end)) > 0:
            end = place  # not inside of %XX
        decoded += unquote_to_bytes(text[start:end])
        start = end
    return bytes(decoded)
