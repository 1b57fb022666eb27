"""Damaged files of every format, for decoders: what any file may do is be invalid, within its memory and time."""

import io
import json
import struct
from functools import cache
from typing import Any, NamedTuple

import costly_inputs
import numpy as np
from deep_images import save_color
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter
from tiny_clips import make_clip, make_track, variable_bit_rate_mp3

from rayfuse.errors import InvalidInputError
from rayfuse.serving.decode_budgets import CpuBudget
from rayfuse.serving.decoders import Decoders
from rayfuse.spec.inputs import Input, default_columns

INPUTS = ("image", "audio", "video", "timeseries")
SECONDS = 20.0
_UNEXPECTED = ("cannot be processed", "the file cannot be decoded")
"""Beginnings of errors that stand for exceptions which end a training run, and for crashes."""
_NUMBERS = (0, 1, 2, 255, 256, 4096, 65_535, 65_536, 1 << 24, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_INTEGERS = [struct.pack(kind, number) for kind in ("<I", ">I") for number in _NUMBERS]
_SHORTS = [struct.pack(kind, number) for kind in ("<H", ">H") for number in (0, 1, 255, 32_767, 65_535)]


class Edit(NamedTuple):
    """A change of a file."""

    kind: str
    """Kind of change."""
    place: float
    """Place in the file, from 0 to 1; most are in its header."""
    content: bytes
    """Bytes to write or to insert."""


def make_decoders() -> Decoders:
    """Return the decoders of all types of files."""
    options = TypeAdapter(dict[str, Input]).validate_python(default_columns(costly_inputs.inputs()))
    return Decoders({name: options[name] for name in INPUTS}, num_processes=1, max_memory=1_000_000_000)


@cache
def seeds() -> list[tuple[str, bytes]]:
    """Return a small valid file of each format, with its input."""
    found = [("image", content) for content in _images()]
    found += [("audio", content) for content in _clips()]
    found += [("audio", make_track(kind=kind)) for kind in ("mp4", "matroska")]
    found += [("video", make_clip(kind=kind)) for kind in ("mp4", "matroska", "avi", "gif", "mpegts", "nut")]
    found += [("timeseries", content) for content in _tables()]
    return found


def _images() -> list[bytes]:
    gradient = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    deep = np.random.default_rng(0).integers(0, 65_536, (8, 8, 3), dtype=np.uint16)
    files = []
    for kind in (
        "PNG",
        "JPEG",
        "WEBP",
        "GIF",
        "TIFF",
        "BMP",
        "AVIF",
        "JPEG2000",
        "ICO",
        "PPM",
        "TGA",
        "QOI",
        "PCX",
        "SGI",
        "DDS",
    ):
        file = io.BytesIO()
        gradient.save(file, kind)
        files.append(file.getvalue())
    for kind, options in (
        ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG", {"progressive": True}),
        ("GIF", {"save_all": True, "append_images": [gradient] * 3}),
    ):
        file = io.BytesIO()
        gradient.save(file, kind, **options)
        files.append(file.getvalue())
    transparent, palette = io.BytesIO(), io.BytesIO()
    gradient.convert("RGBA").save(transparent, "PNG")
    gradient.convert("P").save(palette, "PNG", transparency=b"\xff\0")
    return [*files, transparent.getvalue(), palette.getvalue(), save_color(deep, "png", "rgb48be")]


def _clips() -> list[bytes]:
    import soundfile

    tone = 0.5 * np.sin(np.arange(4000) * 0.3)
    files = [variable_bit_rate_mp3(tone, 8000)]
    for kind, subtype in (
        ("WAV", "PCM_16"),
        ("WAV", "IMA_ADPCM"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("AIFF", "PCM_16"),
        ("AU", "ULAW"),
        ("CAF", "ALAC_16"),
        ("W64", "PCM_16"),
    ):
        file = io.BytesIO()
        soundfile.write(file, tone, 8000, format=kind, subtype=subtype)
        files.append(file.getvalue())
    return files


def _tables() -> list[bytes]:
    numbers: dict[str, Any] = {"0": [1.0, None, 3.0] * 20, "1": [4, 5, 5] * 20}
    plain = costly_inputs.parquet(numbers, use_dictionary=False)
    values = json.dumps([[1, 2.5, None], [4, 5, 6]]).encode()
    return [
        costly_inputs.parquet(numbers),
        plain,
        b"x,y\n1,2\n3,4\n",
        b'"1";"2"\n',
        values,
        b'{"x": [1], "y": [2]}',
    ]


def damaged_files() -> st.SearchStrategy[tuple[str, bytes]]:
    """Return a strategy of damaged files with their input."""
    place = st.one_of(st.floats(0, 0.1), st.floats(0, 1), st.floats(0.9, 1))
    content = st.one_of(
        st.sampled_from(_INTEGERS), st.sampled_from(_SHORTS), st.binary(min_size=1, max_size=8)
    )
    edit = st.builds(Edit, st.sampled_from(["write", "insert", "remove", "repeat", "cut"]), place, content)
    return st.builds(_damage, st.sampled_from(seeds()), st.lists(edit, min_size=1, max_size=6))


def _damage(seed: tuple[str, bytes], edits: list[Edit]) -> tuple[str, bytes]:
    name, original = seed
    content = bytearray(original)
    for edit in edits:
        start = round(edit.place * len(content))
        end = start + len(edit.content)
        if edit.kind == "write":
            content[start:end] = edit.content
        elif edit.kind == "insert":
            content[start:start] = edit.content
        elif edit.kind == "repeat":
            content[start:start] = content[start : start + 64] * 8
        elif edit.kind == "remove":
            del content[start:end]
        else:
            del content[max(start, 1) :]
    return name, bytes(content)


def check_file(decoders: Decoders, name: str, content: bytes) -> None:
    """Check that a file is decoded, or rejected by the error that makes it an invalid row."""
    reason = ""
    try:
        arrays = decoders.decode(name, content, CpuBudget(SECONDS))
    except InvalidInputError as error:
        arrays, reason = {}, error.reason
    assert not reason.startswith(_UNEXPECTED), f"{name}: {reason}: {content[:2000]!r}"
    assert reason or all(array.size for array in arrays.values())
