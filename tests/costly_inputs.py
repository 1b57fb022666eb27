"""Small inputs that would take much memory or time: bombs, by the type of input that they are sent to.

    python tests/costly_inputs.py [NAME …]

Decodes each in a process of its own, and prints its outcome with the memory and time that it took.
"""

import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Make = Callable[[], Any]


class Bomb(NamedTuple):
    """A costly value."""

    kind: str
    """Name of its input in `inputs`."""
    make: Make
    """Make the value."""
    reason: str
    """Beginning of the error, without which it is valid."""
    is_slow: bool
    """True if it takes more than a moment to make or to decode."""


BOMBS: dict[str, Bomb] = {}
"""Costly values by name."""
MAX_MEGABYTES = 1150
"""Largest memory of a value while it is decoded and processed: a video in 8K with 16 reference frames."""
_ADDRESS_SPACE = 8 << 30


def bomb(kind: str, reason: str = "", slow: bool = False) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        BOMBS[make.__name__] = Bomb(kind, make, reason, slow)
        return make

    return register


def inputs() -> dict[str, Any]:
    """Return the spec of an input of each type."""
    return {
        "image": {"type": "image", "size": 32},
        "audio": {"type": "audio"},
        "long_audio": {"type": "audio", "max_seconds": 3600},
        "video": {"type": "video", "size": 32},
        "timeseries": {"type": "timeseries", "channels": 2, "center": [0, 0], "scale": [1, 1]},
        "text": {"type": "text"},
        "ngrams": {"type": "text", "encoder": {"type": "ngrams", "characters": [3, 5], "vocabulary": ["aa"], "idf": [1.0]}},
        "tabular": {"type": "tabular", "columns": {"age": {"type": "number", "center": 0, "scale": 1}, "city": {"type": "category", "vocabulary": ["é"]}}},
        "history": {"type": "item_sequence", "vocabulary": ["a"]},
    }  # fmt: skip


def png(width: int, height: int, depth: int, color: int, interlaced: bool = False) -> bytes:
    """Encode a black PNG without its pixels in memory."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    line = 1 + (width * depth * channels + 7) // 8
    pack = zlib.compressobj(6)
    zeros, left, body = bytes(1 << 20), line * height, []
    while left > 0:
        body.append(pack.compress(zeros[: min(left, len(zeros))]))
        left -= len(zeros)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    palette = _chunk(b"PLTE", bytes(6)) if color == 3 else b""
    content = _chunk(b"IDAT", b"".join(body) + pack.flush())
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + palette + content + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@bomb("image", "the image is too large")
def png_line() -> bytes:
    return png(89_000_000, 1, 8, 0)


@bomb("image", "the image is too large")
def png_column() -> bytes:
    return png(1, 89_000_000, 1, 0)


@bomb("image", slow=True)
def png_transparent() -> bytes:
    return png(9400, 9400, 8, 6)


@bomb("image", "an image of 9400 × 9400 pixels (PNG) takes 2.30 GB", slow=True)
def png_16_bit() -> bytes:
    return png(9400, 9400, 16, 2)


@bomb("image", slow=True)
def png_16_bit_gray() -> bytes:
    return png(9400, 9400, 16, 0)


@bomb("image", "an image of 9400 × 9400 pixels (PNG) takes 2.30 GB", slow=True)
def png_16_bit_transparent() -> bytes:
    return png(9400, 9400, 16, 6)


@bomb("image", slow=True)
def png_palette() -> bytes:
    return png(9400, 9400, 1, 3)


@bomb("image", "an image of 9400 × 9400 pixels (WEBP) takes 1.77 GB")
def webp() -> bytes:
    return lossless_webp(9400, 9400)


@bomb("image", "the image is too large")
def webp_largest() -> bytes:
    return lossless_webp(16383, 16383)


def lossless_webp(width: int, height: int) -> bytes:
    """Encode a WebP of one color: each of its five prefix codes has one symbol of zero bits (RFC 9649)."""
    bits = (width - 1) | (height - 1) << 14 | 1 << 28
    fields = bits.to_bytes(4, "little")
    # no transform, no color cache, no meta prefix codes; 5 × simple code: 1, one symbol 0, one bit, value 0
    stream, place = 0, 0
    for value, size in [(0, 1), (0, 1), (0, 1)] + [(1, 1), (0, 1), (0, 1), (0, 1)] * 5:
        stream |= value << place
        place += size
    image = b"\x2f" + fields + stream.to_bytes((place + 7) // 8 + 8, "little")
    image += b"\0" * (len(image) % 2)
    body = b"WEBPVP8L" + struct.pack("<I", len(image)) + image
    return b"RIFF" + struct.pack("<I", len(body)) + body


@bomb("image", "an image of 9400 × 9400 pixels (WEBP) takes 1.77 GB")
def webp_canvas() -> bytes:
    """Return an animation of tiny frames on a large canvas."""
    frame = lossless_webp(1, 1)[12:]
    header = struct.pack("<I", 0x02) + (9399).to_bytes(3, "little") * 2
    chunks = b"VP8X" + struct.pack("<I", 10) + header + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    content = bytes(6) + bytes(3) * 2 + (100).to_bytes(3, "little") + b"\0" + frame
    chunks += (b"ANMF" + struct.pack("<I", len(content)) + content) * 2
    body = b"WEBP" + chunks
    return b"RIFF" + struct.pack("<I", len(body)) + body


def save(kind: str, size: tuple[int, int], mode: str = "RGB", **options: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


@bomb("image", "an image of 9400 × 9400 pixels (JPEG) takes 1.06 GB", slow=True)
def jpeg_progressive() -> bytes:
    return save("JPEG", (9400, 9400), progressive=True, subsampling=0)


@bomb("image", slow=True)
def jpeg_cmyk() -> bytes:
    return save("JPEG", (9400, 9400), mode="CMYK")


@bomb("image", "an image of 7000 × 7000 pixels (JPEG2000) takes 1.13 GB", slow=True)
def jpeg_2000() -> bytes:
    return save("JPEG2000", (7000, 7000))


@bomb("image", slow=True)
def avif() -> bytes:
    return save("AVIF", (7000, 7000), speed=10, subsampling="4:4:4")


@bomb("image", slow=True)
def gif() -> bytes:
    return save("GIF", (9400, 9400), mode="P")


@bomb("image", "an image of 9400 × 9400 pixels (TIFF) takes 1.24 GB", slow=True)
def tiff_deflate() -> bytes:
    return save("TIFF", (9400, 9400), mode="RGBA", compression="tiff_adobe_deflate")


@bomb("image", "an image of 9400 × 9400 pixels (TIFF) takes 2.30 GB", slow=True)
def tiff_float() -> bytes:
    return save("TIFF", (9400, 9400), mode="F", compression="tiff_adobe_deflate")


@bomb("image", "not a readable image")
def tiff_pages() -> bytes:
    """Return a TIFF with half a million directories, which have no image."""
    count = 500_000
    first = save("TIFF", (1, 1), mode="L")
    start = len(first) + len(first) % 2
    pages = b"".join(struct.pack("<HI", 0, start + 6 * (place + 1)) for place in range(count - 1)) + bytes(6)
    end = struct.unpack_from("<I", first, 4)[0]
    size = struct.unpack_from("<H", first, end)[0]
    link = end + 2 + 12 * size
    whole = bytearray(first.ljust(start, b"\0"))
    whole[link : link + 4] = struct.pack("<I", start)
    return bytes(whole) + pages


@bomb("image", slow=True)
def tiff_strip_bomb() -> bytes:
    """Return a TIFF whose strip unpacks to a gigabyte more than the image has."""
    pack = zlib.compressobj(6)
    data = b"".join(pack.compress(bytes(1 << 20)) for _ in range(1024)) + pack.flush()
    tags = [
        (256, 4, 16),
        (257, 4, 16),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, 16),
        (279, 4, len(data)),
    ]
    directory = (
        struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
        + bytes(4)
    )
    data += b"\0" * (len(data) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


@bomb("image", "an icon of 9400 × 9400 pixels takes 1.06 GB", slow=True)
def ico() -> bytes:
    content = png(9400, 9400, 8, 6)
    return (
        struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(content), 22) + content
    )


@bomb("image", "not a readable image: unknown format", slow=True)
def icns() -> bytes:
    content = png(9400, 9400, 8, 6)
    return (
        b"icns"
        + struct.pack(">I", 16 + len(content))
        + b"ic10"
        + struct.pack(">I", 8 + len(content))
        + content
    )


@bomb("image", slow=True)
def qoi() -> bytes:
    pixels = 7000 * 7000
    return b"qoif" + struct.pack(">IIBB", 7000, 7000, 3, 0) + b"\xfd" * (pixels // 62 + 1) + bytes(7) + b"\1"


@bomb("image", slow=True)
def ppm_text() -> bytes:
    return b"P1\n4000 4000\n" + b"0" * 16_000_000


@bomb("image", "not a readable image: unknown format", slow=True)
def fits_gzip() -> bytes:
    pack = zlib.compressobj(6, wbits=31)
    data = b"".join(pack.compress(bytes(1 << 20)) for _ in range(2048)) + pack.flush()
    cards = [
        "SIMPLE  =                    T",
        "BITPIX  =                    8",
        "NAXIS   =                    0",
        "EXTEND  =                    T",
        "END",
    ]
    first = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    cards = [
        "XTENSION= 'BINTABLE'",
        "BITPIX  =                    8",
        "NAXIS   =                    2",
        "NAXIS1  =                    8",
        "NAXIS2  =                    8",
        "ZIMAGE  =                    T",
        "ZBITPIX =                    8",
        "ZNAXIS  =                    2",
        "ZNAXIS1 =                    8",
        "ZNAXIS2 =                    8",
        "ZCMPTYPE= 'GZIP_1  '",
        "PCOUNT  =                    0",
        "END",
    ]
    second = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    return first + second + data


@bomb("image", slow=True)
def bmp_rle() -> bytes:
    size = 9400
    line = (b"\xff\0" * (size // 255) + bytes([size % 255, 0]) + b"\0\0") * size
    header = struct.pack("<IiiHHIIiiII", 40, size, size, 1, 8, 1, len(line), 0, 0, 256, 0)
    offset = 14 + 40 + 1024
    return b"BM" + struct.pack("<IHHI", offset + len(line), 0, 0, offset) + header + bytes(1024) + line


@bomb("image", slow=True)
def tga_rle() -> bytes:
    size = 9400
    head = struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, size, size, 32, 8)
    return head + b"\xff\0\0\0\0" * (size * size // 128 + 1)


@bomb("image", slow=True)
def psd_rle() -> bytes:
    size = 9400
    line = b"\x81\0" * (size // 128 + 1)
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 4, size, size, 8, 3) + bytes(12)
    return head + struct.pack(">H", 1) + struct.pack(">H", len(line)) * size * 4 + line * size * 4


def flac(seconds: float, rate: int, channels: int) -> bytes:
    import soundfile

    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, channels, format="FLAC", subtype="PCM_16") as target:
        block = np.zeros((rate, channels), dtype=np.int16)
        for _ in range(int(seconds)):
            target.write(block)
    return file.getvalue()


@bomb("long_audio", slow=True)
def flac_hours() -> bytes:
    return flac(600, 655_350, 1)


@bomb("audio", slow=True)
def flac_channels() -> bytes:
    return flac(20, 655_350, 8)


@bomb("audio")
def wav_channels() -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.zeros((9000, 1024), dtype=np.int16), 16000, format="WAV", subtype="PCM_U8")
    return file.getvalue()


@bomb("long_audio", slow=True)
def opus_hours() -> bytes:
    return silence("ogg", "libopus", 48_000, 600)


@bomb("long_audio", slow=True)
def mp4_hours() -> bytes:
    return silence("mp4", "alac", 192_000, 60)


def silence(kind: str, codec: str, rate: int, seconds: int) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout="mono")
        layout = stream.codec_context.format.name
        size = stream.codec_context.frame_size or 4096
        dtype = {"s16": np.int16, "s16p": np.int16, "flt": np.float32, "fltp": np.float32, "s32p": np.int32}[
            layout
        ]
        frame = av.AudioFrame.from_ndarray(np.zeros((1, rate), dtype=dtype), format=layout, layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=layout, layout="mono", rate=rate, frame_size=size)
        for _ in range(seconds):
            frame.pts = None
            for part in resampler.resample(frame):
                container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + name + content


@bomb("audio", "the index of the audio file has 100000000 entries")
def mp4_samples() -> bytes:
    return mp4_table(100_000_000)


def mp4_table(samples: int) -> bytes:
    """Encode an MP4 whose index has many samples of one byte, in a few hundred bytes."""
    full = bytes(4)
    entry = _box(
        b"sowt", bytes(6) + struct.pack(">H", 1) + bytes(8) + struct.pack(">HHHHI", 1, 16, 0, 0, 8000 << 16)
    )
    table = (
        _box(b"stsd", full + struct.pack(">I", 1) + entry)
        + _box(b"stts", full + struct.pack(">III", 1, samples, 1))
        + _box(b"stsc", full + struct.pack(">IIII", 1, 1, samples, 1))
        + _box(b"stsz", full + struct.pack(">II", 1, samples))
        + _box(b"stco", full + struct.pack(">II", 1, 8))
    )
    media = (
        _box(b"mdhd", full + struct.pack(">IIIIHH", 0, 0, 8000, samples, 0, 0))
        + _box(b"hdlr", full + bytes(4) + b"soun" + bytes(13))
        + _box(b"minf", _box(b"smhd", full + bytes(4)) + _box(b"stbl", table))
    )
    matrix = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    head = _box(b"tkhd", struct.pack(">IIIIII", 7, 0, 0, 1, 0, samples) + bytes(16) + matrix + bytes(8))
    movie = _box(
        b"mvhd",
        full
        + struct.pack(">IIII", 0, 0, 8000, samples)
        + struct.pack(">IH10x", 1 << 16, 256)
        + matrix
        + bytes(24)
        + struct.pack(">I", 2),
    )
    return (
        _box(b"ftyp", b"isom" + full + b"isom")
        + _box(b"moov", movie + _box(b"trak", head + _box(b"mdia", media)))
        + _box(b"mdat", bytes(64))
    )


def clip(
    kind: str,
    codec: str,
    size: tuple[int, int],
    frames: int,
    fps: int = 25,
    pixels: str = "yuv420p",
    **options: str,
) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        frame = av.VideoFrame(*size, pixels)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for number in range(frames):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@bomb("video", slow=True)
def video_large_frames() -> bytes:
    return clip("mp4", "libx264", (7680, 4320), 20, preset="ultrafast", refs="16", threads="1")


@bomb("video", slow=True)
def video_many_frames() -> bytes:
    return clip("mp4", "mpeg4", (1920, 1080), 1500)


@bomb("video", "a video of 6000 × 6000 pixels, 24 bits each, takes 2.16 GB", slow=True)
def video_png_frames() -> bytes:
    return clip("avi", "png", (6000, 6000), 3, pixels="rgb24")


@bomb("video", "not a readable video")
def video_line() -> bytes:
    return png(30_000_000, 1, 8, 2)


@bomb("video", "a video of 5900 × 5900 pixels, 32 bits each, takes 2.78 GB")
def gif_frames() -> bytes:
    """Return a GIF of many tiny frames on a large canvas."""
    head = b"GIF89a" + struct.pack("<HHBBB", 5900, 5900, 0x80, 0, 0) + bytes(6)
    frame = (
        b"\x21\xf9\x04\x04\x01\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    )
    return head + frame * 3000 + b";"


@bomb("video", "the index of the video has 50000000 entries")
def mp4_video_samples() -> bytes:
    return mp4_table(50_000_000).replace(b"soun", b"vide")


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, compression="zstd", **options)
    return file.getvalue()


@bomb("timeseries", "channel 0: expected numbers, got a column of list", slow=True)
def parquet_lists() -> bytes:
    import pyarrow as pa

    lists = pa.ListArray.from_arrays(
        pa.array([0, *(1_000_000 * np.arange(1, 41))], pa.int32()), pa.array(np.zeros(40_000_000))
    )
    return parquet({"0": lists, "1": lists})


@bomb("timeseries", slow=True)
def parquet_rows() -> bytes:
    import pyarrow as pa

    zeros = pa.array(np.zeros(24_000_000))
    return parquet({"0": zeros, "1": zeros})


@bomb("timeseries", "channel 0: expected numbers, got a column of string", slow=True)
def parquet_strings() -> bytes:
    import pyarrow as pa

    long = pa.array(["x" * 10_000_000] * 50)
    return parquet({"0": long, "1": long})


@bomb("timeseries", "3 channels, but this input has 2", slow=True)
def parquet_other_column() -> bytes:
    import pyarrow as pa

    return parquet(
        {"x": pa.array(np.zeros(10)), "y": pa.array(np.zeros(10)), "z": pa.array(["x" * 50_000_000] * 10)}
    )


@bomb("timeseries", "20000 channels, but this input has 2", slow=True)
def parquet_columns() -> bytes:
    import pyarrow as pa

    return parquet({f"c{number}": pa.array([0.0]) for number in range(20_000)})


@bomb("timeseries", slow=True)
def csv_cells() -> bytes:
    return b"1,2\n" * 3_000_000


@bomb("timeseries", "999 channels, but this input has 2", slow=True)
def csv_other_columns() -> bytes:
    return (b"12," * 998 + b"12\n") * 6000


@bomb("timeseries", "a line has more than 100000 cells")
def csv_columns() -> bytes:
    return b"1," * 6_000_000 + b"1\n"


@bomb("timeseries", slow=True)
def csv_blank_lines() -> bytes:
    return b"1,2\n" + b"\n" * 19_000_000


@bomb("timeseries", "a line has more than 100000 cells")
def csv_quotes() -> bytes:
    return b"1,2\n" + b'"",' * 6_000_000


@bomb("timeseries", slow=True)
def json_series() -> bytes:
    return b"[[" + b"1," * 4_000_000 + b"1],[" + b"1," * 4_000_000 + b"1]]"


@bomb("timeseries", slow=True)
def json_lists() -> bytes:
    return b"[" + b"[]," * 6_000_000 + b"[]]"


@bomb("timeseries", slow=True)
def json_mappings() -> bytes:
    return b"[" + b'{"a":1},' * 2_400_000 + b"{}]"


@bomb("timeseries", "channel 0: expected a number or null")
def strings_in_array() -> Any:
    return [["x" * 1_000_000, *[""] * 500], [0.0] * 501]


@bomb("text")
def text_long() -> str:
    return "word " * 4_000_000


@bomb("ngrams")
def text_of_one_word() -> str:
    return "a" * 20_000_000


@bomb("text", slow=True)
def text_words() -> list[str]:
    return ["a"] * 5_000_000


@bomb("tabular")
def category_marks() -> dict[str, str]:
    """Return combining marks in an order that NFC reverses, in time that is quadratic in their number."""
    return {"city": "a" + "\u0300" * 100_000 + "\u0323" * 100_000}


@bomb("tabular")
def category_long() -> dict[str, str]:
    return {"city": "1" * 20_000_000}


@bomb("history", "8000000 items exceed the maximum")
def items() -> list[int]:
    return [1] * 8_000_000


@bomb("history", slow=True)
def events() -> list[dict[str, Any]]:
    return [{"id": 1, "time": 1}] * 1_000_000


def measure(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the outcome of each bomb: its size, the error ("" if it is valid), seconds, and megabytes above the start."""
    from pydantic import TypeAdapter

    from rayfuse.modalities import build_modality
    from rayfuse.spec.inputs import Input, default_columns

    options = TypeAdapter(dict[str, Input]).validate_python(default_columns(inputs()))
    modalities = {name: build_modality(kind) for name, kind in options.items()}
    for modality in modalities.values():
        if modality.example() is not None:
            modality.process(modality.decode(modality.example()))
    for name in names:
        content = _in_child(BOMBS[name].make)
        yield {"name": name, **_in_child(lambda: _measure(modalities[BOMBS[name].kind], content))}  # noqa: B023


def measure_in_child(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the outcomes of bombs by name, measured in processes that have loaded nothing else."""
    command = [sys.executable, __file__, "--json", *names]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {outcome["name"]: outcome for outcome in map(json.loads, found.stdout.splitlines())}


def check(outcome: Mapping[str, Any]) -> None:
    """Check the error and the memory of a bomb."""
    reason = BOMBS[outcome["name"]].reason
    assert outcome["error"].startswith(reason) if reason else not outcome["error"], outcome["error"]
    assert outcome["megabytes"] < MAX_MEGABYTES


def _measure(modality: Any, value: Any) -> dict[str, Any]:
    from rayfuse.errors import InvalidInputError

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE,) * 2)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, started = _memory("VmRSS"), time.process_time()
    error = ""
    try:
        modality.process(modality.decode(value))
    except InvalidInputError as found:
        error = str(found)
    size = len(value) if isinstance(value, bytes | str) else len(json.dumps(value))
    seconds = time.process_time() - started
    return {"bytes": size, "error": error, "seconds": seconds, "megabytes": _memory("VmHWM") - before}


def _memory(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(f"{key}:"))


def _in_child(call: Callable[[], Any]) -> Any:
    """Return what a call returns in a forked process, whose memory is freed with it."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        with os.fdopen(writable, "wb") as file:
            pickle.dump(call(), file)
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as file:
        content = file.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"a child process ended with status {status}"
    return pickle.loads(content)


if __name__ == "__main__":
    as_json = "--json" in sys.argv
    for found in measure([name for name in sys.argv[1:] if name in BOMBS] or list(BOMBS)):
        print(
            json.dumps(found)
            if as_json
            else f"{found['name']:24} {found['bytes']:>10} B {found['seconds']:6.1f} s {found['megabytes']:7.0f} MB  "
            f"{found['error'][:150]}",
            flush=True,
        )
