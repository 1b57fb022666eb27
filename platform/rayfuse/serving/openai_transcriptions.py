"""Transcripts of sounds under the OpenAI protocol: the form of a request, and the forms of its reply.

The forms are those of https://platform.openai.com/docs/api-reference/audio/createTranscription.
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import ConfigDict, Field
from starlette.responses import PlainTextResponse, Response

from rayfuse.decoding.request import Completion, Piece
from rayfuse.modalities.transcripts import Segment
from rayfuse.serving.multipart import parse_header, split_parts
from rayfuse.serving.openai_errors import OpenAIError
from rayfuse.serving.openai_replies import Event, ReplyForm, usage
from rayfuse.serving.openai_requests import TextRequest, parse_request
from rayfuse.serving.problems import to_json

_FILE = "file"
_FORM = "multipart/form-data"
_TIMED = ("srt", "vtt", "verbose_json")


class TranscriptionRequest(TextRequest):
    """Fields of POST /audio/transcriptions but the file, which are texts of a form."""

    model_config = ConfigDict(extra="allow", strict=False)
    neutral = frozenset({"chunking_strategy", "user"})

    language: str | None = None
    """Code of the spoken language, which must be the one that the model transcribes."""
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    max_tokens: int | None = Field(default=None, ge=1)
    """Not part of OpenAI's protocol; send it through `extra_body`."""

    @property
    def is_timed(self) -> bool:
        """True for a form with time stamps."""
        return self.response_format in _TIMED


def parse_form(body: bytes, content_type: str) -> tuple[TranscriptionRequest, bytes]:
    """Return the fields of a multipart form and its file. Raises OpenAIError for the first field that is wrong."""
    name, options = parse_header(content_type)
    if name != _FORM:
        raise OpenAIError(415, f"Content-Type: {name or 'missing'}; send {_FORM}", None, "invalid_value")
    parts = split_parts(body, options.get("boundary", ""))
    files = [part.content for part in parts if part.name == _FILE]
    if len(files) != 1:
        raise OpenAIError(
            400, f"{_FILE}: the form has {len(files)} of them; send one", _FILE, "missing_required_parameter"
        )
    fields = {part.name: part.content.decode("utf-8", "replace") for part in parts if part.name != _FILE}
    request = parse_request(TranscriptionRequest, fields)
    if request.is_timed and request.stream:
        raise OpenAIError(
            400,
            "stream: a transcript with time stamps is sent whole; leave it out",
            "stream",
            "invalid_value",
        )
    return request, files[0]


class TranscriptionForm(ReplyForm):
    """A transcript as JSON, and the events of its stream."""

    done = b""

    def __init__(self, request: TranscriptionRequest) -> None:
        self._request = request

    def whole(self, completions: Sequence[Completion]) -> Event:
        return {"text": completions[0].text.strip(), "usage": self._usage(completions)}

    def start(self) -> Iterator[Event]:
        return iter(())

    def piece(self, index: int, piece: Piece) -> Iterator[Event]:
        if piece.text:
            yield {"type": "transcript.text.delta", "delta": piece.text}

    def end(self, completions: Sequence[Completion]) -> Iterator[Event]:
        yield {"type": "transcript.text.done", **self.whole(completions)}

    def response(self, completions: Sequence[Completion]) -> Response:
        form = self._request.response_format
        if form == "text":
            return PlainTextResponse(self.whole(completions)["text"] + "\n")
        if form == "json":
            return super().response(completions)
        segments = completions[0].segments
        if form == "srt":
            return PlainTextResponse(_srt(segments), media_type="application/x-subrip")
        if form == "vtt":
            return PlainTextResponse(_vtt(segments), media_type="text/vtt")
        return Response(to_json(self._verbose(segments)), media_type="application/json")

    def _verbose(self, segments: Sequence[Segment]) -> Event:
        """Return a transcript with its segments, without the fields of OpenAI's whose values are not computed here."""
        return {
            "task": "transcribe",
            "language": self._request.language,
            "duration": segments[-1].end if segments else 0.0,
            "text": " ".join(segment.text for segment in segments),
            "segments": [
                {
                    "id": number,
                    "seek": 0,
                    **segment._asdict(),
                    "compression_ratio": _compression(segment.text),
                }
                for number, segment in enumerate(segments)
            ],
        }

    def _usage(self, completions: Sequence[Completion]) -> Event:
        counts = usage(completions)
        return {
            "type": "tokens",
            "input_tokens": counts["prompt_tokens"],
            "output_tokens": counts["completion_tokens"],
            "total_tokens": counts["total_tokens"],
        }


def _compression(text: str) -> float:
    """Return by how much zlib shortens a text, as Whisper defines it to find repetitions."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))


def _srt(segments: Sequence[Segment]) -> str:
    """Return SubRip subtitles."""
    return "\n".join(
        f"{number}\n{_clock(one.start, ',')} --> {_clock(one.end, ',')}\n{one.text}\n"
        for number, one in enumerate(segments, 1)
    )


def _vtt(segments: Sequence[Segment]) -> str:
    """Return WebVTT subtitles."""
    cues = (f"\n{_clock(one.start, '.')} --> {_clock(one.end, '.')}\n{one.text}\n" for one in segments)
    return "WEBVTT\n" + "".join(cues)


def _clock(seconds: float, point: str) -> str:
    """Return a time as 00:00:01.500."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
