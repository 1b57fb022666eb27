"""Parse `multipart/form-data` bodies that are already in memory."""

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from rayfuse.serving.problems import ProblemError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_PARTS = 1000

logging.getLogger("python_multipart").setLevel(
    logging.ERROR
)  # it warns of every malformed body; the client gets a 400


@dataclass(frozen=True)
class Part:
    """A part of a multipart body."""

    name: str
    """`name` of its Content-Disposition."""
    filename: str | None
    """`filename` of its Content-Disposition; None for a form field."""
    media_type: str | None
    """Its Content-Type without parameters, in lower case; None where absent."""
    content: bytes
    """Its body."""

    @property
    def is_empty_file(self) -> bool:
        """True if this is a file field of a web form in which no file was chosen."""
        return not self.filename and not self.content


def parse_header(value: str) -> tuple[str, dict[str, str]]:
    """Parse a header such as `type/name; option=…` into its value in lower case and its options."""
    name, options = parse_options_header(value.encode("utf-8", "replace"))
    return name.decode("latin-1").strip().lower(), {_text(k): _text(v) for k, v in options.items()}


def split_parts(body: bytes, boundary: str) -> list[Part]:
    """Split a body into its parts; raise ProblemError where it is malformed or incomplete."""
    if not boundary:
        raise ProblemError("malformed", "Content-Type: multipart/form-data has no boundary")
    collector = _Collector()
    try:
        parser = MultipartParser(boundary.encode("latin-1"), collector.callbacks)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise ProblemError("malformed", f"the body is not multipart/form-data: {error}") from None
    if not collector.complete:
        raise ProblemError("malformed", "the multipart body is incomplete: its closing boundary is missing")
    return collector.parts


@dataclass
class _Collector:
    """Collects parts from the callbacks of python-multipart."""

    parts: list[Part] = field(default_factory=list)
    complete: bool = False
    _headers: dict[str, str] = field(default_factory=dict)
    _name: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _content: bytearray = field(default_factory=bytearray)

    @property
    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_part_data": lambda data, start, end: self._content.extend(data[start:end]),
            "on_part_end": self._end,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.parts) >= _MAX_PARTS:
            raise ProblemError("malformed", f"more than {_MAX_PARTS} parts")
        self._headers, self._content = {}, bytearray()

    def _end_header(self) -> None:
        self._headers[_text(bytes(self._name)).lower()] = _text(bytes(self._value))
        self._name, self._value = bytearray(), bytearray()

    def _end(self) -> None:
        disposition, options = parse_header(self._headers.get("content-disposition", ""))
        if disposition != "form-data" or "name" not in options:
            raise ProblemError("malformed", 'a part has no `Content-Disposition: form-data; name="…"`')
        declared = self._headers.get("content-type")
        self.parts.append(
            Part(
                name=options["name"],
                filename=options.get("filename"),
                media_type=parse_header(declared)[0] if declared else None,
                content=bytes(self._content),
            )
        )

    def _finish(self) -> None:
        self.complete = True


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
