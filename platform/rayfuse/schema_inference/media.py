"""Kinds of files by their names or first bytes, and the sizes of a few of them."""

import io
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rayfuse.data.files import read_file, resolve_relative
from rayfuse.data.formats.class_folders import KINDS
from rayfuse.schema_inference.sample import Embedded

SERIES_SUFFIXES = (".csv", ".parquet", ".json")
"""Suffixes of files that a time series input reads."""
_KIND_OF = {suffix: kind for kind, suffixes in KINDS.items() for suffix in suffixes}
_KIND_OF |= dict.fromkeys(SERIES_SUFFIXES, "timeseries")
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG", "image"), (0, b"\xff\xd8\xff", "image"), (0, b"GIF8", "image"), (0, b"BM", "image"),
    (0, b"II*\x00", "image"), (0, b"MM\x00*", "image"), (8, b"WEBP", "image"), (8, b"avif", "image"),
    (8, b"WAVE", "audio"), (0, b"fLaC", "audio"), (0, b"OggS", "audio"), (0, b"ID3", "audio"),
    (0, b"\xff\xfb", "audio"), (0, b"\xff\xf3", "audio"), (0, b"\xff\xf2", "audio"), (8, b"AIF", "audio"),
    (8, b"M4A", "audio"), (0, b".snd", "audio"), (0, b"caff", "audio"),
    (4, b"ftyp", "video"), (0, b"\x1aE\xdf\xa3", "video"), (8, b"AVI ", "video"), (0, b"FLV", "video"),
    (0, b"\x00\x00\x01\xba", "video"),
)  # fmt: skip
"""Position and content of the first bytes of formats; the first that fits counts."""
_NUM_PROBED = 8


@dataclass(frozen=True)
class MediaFacts:
    """Sizes of a few files of a column."""

    side: int | None = None
    """Median of the longer sides of images or frames, in pixels."""
    sample_rate: int | None = None
    """Samples per second of audio, the most common one."""
    seconds: float | None = None
    """Longest duration."""
    has_audio: bool = False
    """True if videos have an audio stream."""
    error: str | None = None
    """Reason that no file could be read; None if one could be."""


def kind_of_value(value: Any) -> str | None:
    """Return image, audio, video, text or timeseries for a file or the path of one; None for other values."""
    if isinstance(value, Embedded):
        return kind_of_path(value.path or "") or kind_of_bytes(value.start)
    return kind_of_path(value) if isinstance(value, str) else None


def kind_of_path(path: str) -> str | None:
    """Return the kind of the file at a path or URL by its suffix; None for an unknown suffix or a text with spaces."""
    name = path.strip().partition("?")[0].rpartition("/")[2]
    if "." not in name or "\n" in path or len(path) > 1000 or name.count(" ") > 4:
        return None
    return _KIND_OF.get("." + name.rpartition(".")[2].lower())


def kind_of_bytes(start: bytes) -> str | None:
    """Return the kind of a file by its first bytes; None for an unknown format."""
    return next((kind for place, magic, kind in _MAGIC if start[place:].startswith(magic)), None)


def probe(kind: str, values: Sequence[Any], folder: str) -> MediaFacts:
    """Read the sizes of a few files. `folder`: the folder to which paths refer."""
    found: list[MediaFacts] = []
    error: str | None = None
    for value in list(values)[:_NUM_PROBED]:
        try:
            found.append(_PROBES[kind](_content(value, folder)))
        except FileNotFoundError:
            error = error or f"{value}: no such file, relative to the folder of the rows"
        except Exception as failed:  # noqa: BLE001 - stores and decoders have their own errors; validation reports them
            error = error or f"{type(failed).__name__}: {failed}"
    if not found:
        return MediaFacts(error=error or "no file")
    sides = [facts.side for facts in found if facts.side]
    rates = [facts.sample_rate for facts in found if facts.sample_rate]
    return MediaFacts(
        side=int(statistics.median(sides)) if sides else None,
        sample_rate=statistics.mode(rates) if rates else None,
        seconds=max((facts.seconds for facts in found if facts.seconds), default=None),
        has_audio=all(facts.has_audio for facts in found),
    )


def read_first(values: Sequence[Any], folder: str) -> Iterator[bytes]:
    """Yield the contents of the first files. Raises the store's own errors."""
    for value in list(values)[:_NUM_PROBED]:
        yield _content(value, folder)


def _content(value: Any, folder: str) -> bytes:
    if isinstance(value, Embedded):
        if value.content is None:
            raise ValueError("its content was not kept")
        return value.content
    return read_file(resolve_relative(folder, str(value)))


def _probe_image(content: bytes) -> MediaFacts:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return MediaFacts(side=max(image.size))


def _probe_audio(content: bytes) -> MediaFacts:
    import soundfile

    try:
        info = soundfile.info(io.BytesIO(content))
    except soundfile.LibsndfileError:
        return _probe_container(content, "audio")
    return MediaFacts(sample_rate=info.samplerate, seconds=info.duration)


def _probe_video(content: bytes) -> MediaFacts:
    return _probe_container(content, "video")


def _probe_container(content: bytes, kind: str) -> MediaFacts:
    import av

    with av.open(io.BytesIO(content), "r") as container:
        seconds = container.duration / av.time_base if container.duration else None
        audio = container.streams.audio
        rate = audio[0].rate if audio else None
        if kind == "audio":
            return MediaFacts(sample_rate=rate, seconds=seconds)
        frames = container.streams.video[0]
        return MediaFacts(max(frames.width, frames.height), rate, seconds, bool(audio))


_PROBES = {"image": _probe_image, "audio": _probe_audio, "video": _probe_video}
