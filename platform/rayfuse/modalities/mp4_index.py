"""Number of samples in the index of an MP4 or MOV file, for which FFmpeg allocates memory when it opens the file.

Source: ISO/IEC 14496-12. A table of a few bytes can state billions of samples of one size and duration.
"""

import struct
from collections.abc import Iterator

_CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"edts"})
_MAX_BOXES = 100_000
_COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4}
"""Boxes that state a number of samples → its place after version and flags."""
_RUNS = {b"stts": 8, b"ctts": 8}
"""Boxes of runs of samples → bytes of a run, which begins with the number of its samples."""


def count_samples(content: bytes) -> int:
    """Return the number of samples that the tables of an MP4 file state; 0 for other files."""
    if content[4:8] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        return 0
    return max(map(sum, _counts(content)), default=0)


def _counts(content: bytes) -> list[list[int]]:
    """Return the stated numbers of samples of each kind of table."""
    found: dict[bytes, list[int]] = {}
    for name, start, end in _boxes(content):
        count = 0
        if (place := _COUNTS.get(name)) is not None and start + place + 4 <= end:
            [count] = struct.unpack_from(">I", content, start + place)
        elif name in _RUNS and start + 8 <= end:
            [runs] = struct.unpack_from(">I", content, start + 4)
            runs = min(runs, (end - start - 8) // _RUNS[name])
            count = sum(
                run for run, _ in struct.iter_unpack(">II", content[start + 8 : start + 8 + 8 * runs])
            )
        found.setdefault(name, []).append(count)
    return list(found.values())


def _boxes(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, start and end of the content of each box, also of those in other boxes."""
    pending = [(0, len(content))]
    for _ in range(_MAX_BOXES):
        if not pending:
            return
        start, end = pending.pop()
        if start + 8 > end:
            continue
        size, name = struct.unpack_from(">I4s", content, start)
        inner = start + 8
        if size == 1 and start + 16 <= end:
            [size] = struct.unpack_from(">Q", content, start + 8)
            inner = start + 16
        stop = end if size == 0 else start + size
        if stop < inner:
            continue
        pending.append((stop, end))
        yield name, inner, min(stop, end)
        if name in _CONTAINERS:
            pending.append((inner, min(stop, end)))
