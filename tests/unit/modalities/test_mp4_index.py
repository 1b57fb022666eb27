"""The number of samples in the index of an MP4 is known before FFmpeg opens it."""

import struct

from costly_inputs import mp4_table
from tiny_clips import make_clip

from rayfuse.modalities.mp4_index import count_samples


def test_samples_of_one_size_are_counted() -> None:
    assert count_samples(mp4_table(100_000_000)) == 100_000_000
    assert count_samples(make_clip((10, 20, 30))) == 3


def test_fragments_are_added_up() -> None:
    run = struct.pack(">I4sII", 16, b"trun", 0, 1000)
    fragment = struct.pack(">I4sI4s", 32, b"moof", 24, b"traf") + run
    assert count_samples(struct.pack(">I4s", 8, b"ftyp") + fragment * 3) == 3000


def test_broken_and_other_files_have_none() -> None:
    whole = mp4_table(5)
    assert all(count_samples(whole[:length]) in (0, 5) for length in range(len(whole)))
    assert count_samples(b"RIFF") == count_samples(b"") == 0
