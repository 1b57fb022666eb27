"""Lengths that headers of audio files state, since decoders accept files that end early.

Sources: the specifications of RIFF/WAVE and RF64 (EBU Tech 3306), Sony Wave64, AIFF, AU, CAF (Apple), Ogg (RFC 3533), and
the Xing/LAME and VBRI headers of MP3. FLAC states samples, which are compared after decoding.
"""

from collections.abc import Callable

_PLACEHOLDER_SIZE = 0x7FFF0000
"""Streaming recorders write 32-bit sizes from here up into the header."""
_TOLERANCE = 0.99
_OGG_HEADER_BYTES, _OGG_LAST_PAGE = 27, 4
_W64_GUID = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_MP3_SEARCH_BYTES = 4096
_FLAC_SAMPLES = (1 << 36) - 1


def describe_truncation(content: bytes) -> str:
    """Return what is missing at the end of an audio file, such as "100 of 200 bytes"; empty if nothing is."""
    for magic, check in _CHECKS.items():
        if content.startswith(magic):
            return check(content)
    return _mp3(content)


def is_mp3(content: bytes) -> bool:
    """Return whether a file begins as MP3: with an ID3 tag, or with a frame of MPEG layer III."""
    start = _id3_size(content)
    return bool(start) or (len(content) > 2 and content[0] == 0xFF and content[1] & 0xE6 == 0xE2)


def is_streamed_flac(content: bytes) -> bool:
    """Return whether a FLAC file states no number of samples, as if it was written to a pipe (RFC 9639, STREAMINFO)."""
    return content[:4] == b"fLaC" and not int.from_bytes(content[21:26]) & _FLAC_SAMPLES


def _compare(found: int, stated: int) -> str:
    return f"{found} of {stated} bytes" if found < stated * _TOLERANCE else ""


def _riff(content: bytes) -> str:
    stated = int.from_bytes(content[4:8], "little") + 8
    return "" if stated >= _PLACEHOLDER_SIZE else _compare(len(content), stated)


def _rf64(content: bytes) -> str:
    place = content.find(b"ds64", 12, 200)
    return (
        _compare(len(content), int.from_bytes(content[place + 8 : place + 16], "little") + 8)
        if place > 0
        else ""
    )


def _aiff(content: bytes) -> str:
    stated = int.from_bytes(content[4:8], "big") + 8
    return "" if stated >= _PLACEHOLDER_SIZE else _compare(len(content), stated)


def _au(content: bytes) -> str:
    start, size = (int.from_bytes(content[place : place + 4], "big") for place in (4, 8))
    return "" if size >= _PLACEHOLDER_SIZE else _compare(len(content), start + size)


def _w64(content: bytes) -> str:
    return _compare(len(content), int.from_bytes(content[16:24], "little"))


def _caf(content: bytes) -> str:
    place = 8
    while place + 12 <= len(content):
        size = int.from_bytes(content[place + 4 : place + 12], "big", signed=True)
        if size < 0:  # the data continue to the end of the file
            return ""
        place += 12 + size
    return _compare(len(content), place)


def _ogg(content: bytes) -> str:
    place = content.rfind(b"OggS")
    header = content[place : place + _OGG_HEADER_BYTES]
    if len(header) < _OGG_HEADER_BYTES:
        return "its last page is incomplete"
    lengths = content[place + _OGG_HEADER_BYTES :][: header[26]]
    end = place + _OGG_HEADER_BYTES + len(lengths) + sum(lengths)
    if len(lengths) < header[26] or len(content) < end:
        return "its last page is incomplete"
    return "" if header[5] & _OGG_LAST_PAGE else "its stream has no last page"


def _mp3(content: bytes) -> str:
    """Compare with the bytes in the header of an encoder; without one, an MP3 has no stated length."""
    start = _id3_size(content)
    head = content[start : start + _MP3_SEARCH_BYTES]
    for magic in (b"Xing", b"Info"):
        place = head.find(magic, 0, 64)
        if place >= 0 and head[place + 7] & 2:
            place += 8 + 4 * (head[place + 7] & 1)
            return _compare(len(content) - start, int.from_bytes(head[place : place + 4], "big"))
    place = head.find(b"VBRI", 0, 64)
    return (
        _compare(len(content) - start, int.from_bytes(head[place + 10 : place + 14], "big"))
        if place >= 0
        else ""
    )


def _id3_size(content: bytes) -> int:
    if content[:3] != b"ID3" or len(content) < 10:
        return 0
    size = 0
    for byte in content[6:10]:
        size = size << 7 | byte & 0x7F
    return size + 10


_CHECKS: dict[bytes, Callable[[bytes], str]] = {
    b"RIFF": _riff,
    b"RF64": _rf64,
    b"FORM": _aiff,
    b".snd": _au,
    _W64_GUID: _w64,
    b"caff": _caf,
    b"OggS": _ogg,
}
