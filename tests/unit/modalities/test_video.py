"""Frames of a video, evenly by time; its audio track; and invalid files."""

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tiny_clips import make_clip, make_track

from rayfuse.errors import InvalidInputError, MissingInputError
from rayfuse.modalities.audio import AudioModality
from rayfuse.modalities.video import VideoModality, uniform_frame_times
from rayfuse.spec.encoders import CustomEncoderConfig
from rayfuse.spec.inputs import AudioInput, VideoInput

ENCODER = CustomEncoderConfig(type="my.module:Encoder")
IDENTITY = b"".join(n.to_bytes(4, "big") for n in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))


def modality(**options: Any) -> VideoModality:
    return VideoModality(VideoInput(type="video", column="clip", encoder=ENCODER, **{"size": 16, **options}))


def ears(**options: Any) -> AudioModality:
    settings = {"sample_rate": 8000, "max_seconds": 2.0, **options}
    return AudioModality(AudioInput(type="audio", column="clip", encoder=ENCODER, **settings))


def shades(value: bytes, **options: Any) -> list[float]:
    """Return the mean shade of each sampled frame."""
    return [float(frame.mean()) for frame in modality(**options).decode(value).frames]


def test_frames_are_sampled_evenly() -> None:
    clip = make_clip(range(10, 250, 10), fps=8)  # 24 frames, 3 seconds
    found = modality(num_frames=4).decode(clip)
    assert [frame.mean() for frame in found.frames] == pytest.approx([40, 100, 160, 220], abs=6)
    assert found.times == pytest.approx([0.375, 1.125, 1.875, 2.625])
    features = modality(num_frames=4).process(found)
    assert features["frames"].shape == (4, 3, 16, 16)
    assert features["frames"].dtype == features["frame_times"].dtype == np.float32
    assert features["frames"].min() >= -1
    assert features["frames"].max() <= 1
    assert features["frame_mask"].tolist() == [1] * 4


def test_a_clip_with_fewer_frames_gives_them_all() -> None:
    assert shades(make_clip((50, 150)), num_frames=8) == pytest.approx([50, 150], abs=6)
    assert shades(make_clip((50,)), num_frames=8) == pytest.approx([50], abs=6)


def test_only_the_first_max_seconds_are_read() -> None:
    clip = make_clip([50] * 10 + [200] * 30, fps=5)
    assert shades(clip, max_seconds=1.5) == pytest.approx([50] * 8, abs=6)


@pytest.mark.parametrize(
    ("count", "times", "found"),
    [
        (2, [0.0, 1.0, 2.0, 3.0], [1.0, 3.0]),
        (2, [0.0, 0.1, 0.2, 10.0], [0.2, 10.0]),
        (8, [0.0], [0.0]),
        (1, [0.0, 1.0], [1.0]),
    ],
)
def test_uniform_frame_times(count: int, times: list[float], found: list[float]) -> None:
    assert uniform_frame_times(times, count) == found


@pytest.mark.parametrize("kind", ["matroska", "avi", "mpegts", "gif", "m4v"])
def test_other_containers_also_without_a_duration(kind: str) -> None:
    """`m4v` is a raw stream without duration and times."""
    values = (0, 255) if kind == "gif" else (40, 200)
    clip = make_clip([values[0]] * 5 + [values[1]] * 5, kind=kind)
    assert shades(clip, num_frames=2) == pytest.approx(values, abs=8)


@pytest.mark.parametrize(
    ("matrix", "bright"),
    [
        ((0, 0x10000, 0, -0x10000, 0, 0), "right"),  # turned by 90° clockwise, as by a phone held upright
        ((-0x10000, 0, 0, 0, -0x10000, 0), "bottom"),
        ((0, -0x10000, 0, 0x10000, 0, 0), "left"),
    ],
)
def test_rotation_metadata_is_applied(matrix: tuple[int, ...], bright: str) -> None:
    turned = b"".join(n.to_bytes(4, "big", signed=True) for n in (*matrix, 0, 0, 0x40000000))
    head, track, tail = make_clip((20,), top=220).rpartition(IDENTITY)  # the first one is the whole film's
    assert track
    [frame] = modality().decode(head + turned + tail).frames
    halves = {
        "top": frame[:8].mean(),
        "bottom": frame[8:].mean(),
        "left": frame[:, :8].mean(),
        "right": frame[:, 8:].mean(),
    }
    assert max(halves, key=lambda half: halves[half]) == bright


def test_clips_are_padded_to_the_longest() -> None:
    reader = modality(num_frames=4)
    rows = [reader.process(reader.decode(make_clip(range(50, 50 + n)))) for n in (2, 4)]
    batch = reader.collate([*rows, reader.dummy_features()])
    assert batch["frames"].shape == (3, 4, 3, 16, 16)
    assert batch["frame_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch["frame_times"].shape == (3, 4)


CLIP = make_clip(pitch=440.0)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"", r"the video file is empty \(0 bytes\)"),
        (b"This is a text.", "not a readable video, or it is truncated: "),
        (CLIP[:300], "not a readable video, or it is truncated"),
        (CLIP[: len(CLIP) // 2], "not a readable video, or it is truncated"),
        (make_track(), "the file has no video stream"),
        (make_clip(size=(8000, 16)), None),
        (3, "expected the bytes of a video file, or its path in a row, got int"),
        ([CLIP], "expected the bytes of a video file, or its path in a row, got list"),
    ],
)
def test_invalid_files_are_rejected(value: Any, problem: str | None) -> None:
    if problem is None:
        assert len(modality().decode(value).frames) == 5
        return
    with pytest.raises(InvalidInputError, match=problem):
        modality().decode(value)


def test_a_truncated_video_is_rejected(tmp_path: Path) -> None:
    """Its index is at the front and lists more packets than are present."""
    path = tmp_path / "clip.mp4"
    with (
        av.open(io.BytesIO(make_clip(range(0, 250, 5), size=(64, 64)))) as source,
        av.open(path, "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    content = path.read_bytes()
    assert len(modality().decode(content).frames) == 8
    with pytest.raises(InvalidInputError, match="truncated"):
        modality().decode(content[: int(len(content) * 0.7)])


@pytest.mark.parametrize("kind", ["matroska", "avi", "mp4"])
def test_both_tracks_of_a_truncated_container_are_rejected(kind: str) -> None:
    content = make_clip(range(0, 250, 5), pitch=440.0, kind=kind)
    sound = ears(max_seconds=60.0)
    assert len(sound.decode(content)) == pytest.approx(80_000, rel=0.03)
    assert len(modality().decode(content).frames) == 8
    for reader in (sound, modality()):
        for part in (0.5, 0.9):
            with pytest.raises(
                InvalidInputError, match=r"truncated: |or it is truncated|not a readable audio"
            ):
                reader.decode(content[: int(len(content) * part)])


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    """FFmpeg would open the file or URL that it names."""
    (tmp_path / "secret.mp4").write_bytes(CLIP)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n"
    joined = f"ffconcat version 1.0\nfile '{tmp_path}/secret.mp4'\n"
    for text in (playlist, joined):
        for reader in (modality(), ears()):
            with pytest.raises(InvalidInputError, match="not a readable"):
                reader.decode(text.encode())


def test_the_audio_track_of_a_video() -> None:
    sound = ears(audio_of="clip").decode(make_clip([100] * 10, pitch=440.0))
    assert len(sound) == pytest.approx(16000, abs=1100)  # AAC comes in blocks of 1024
    strength = np.abs(np.fft.rfft(sound[:8000]))
    assert strength.argmax() == pytest.approx(440, abs=2)
    assert np.abs(sound[2000:14000]).max() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_audio_formats_that_libsndfile_does_not_read(rate: int) -> None:
    for kind in ("mp4", "adts", "matroska"):
        sound = ears(sample_rate=rate).decode(make_track(kind=kind))
        assert len(sound) == pytest.approx(rate, abs=0.3 * rate)
        assert np.abs(sound[rate // 4 : rate // 2]).max() == pytest.approx(0.5, abs=0.05)


def test_a_video_without_audio() -> None:
    with pytest.raises(MissingInputError, match="the file has no audio track"):
        ears(audio_of="clip").decode(make_clip())
    with pytest.raises(InvalidInputError, match="the file has no audio track") as found:
        ears().decode(make_clip())
    assert not isinstance(found.value, MissingInputError)
