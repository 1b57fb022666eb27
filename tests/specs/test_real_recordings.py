"""Read real handwriting, voices, videos and sensor data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reading import read_all

from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import Preprocessor
from rayfuse.errors import InvalidInputError
from rayfuse.modalities import build_modality
from rayfuse.modalities.timeseries import TimeSeriesModality
from rayfuse.spec.encoders import CustomEncoderConfig
from rayfuse.spec.inputs import AudioInput, TimeseriesInput, VideoInput
from rayfuse.spec.job import Job
from rayfuse.spec.load import load_spec

ENCODER = CustomEncoderConfig(type="my.module:Encoder")
VIDEO = VideoInput(type="video", column="video", encoder=ENCODER, num_frames=4, size=32, max_seconds=2)
TRACK = AudioInput(
    type="audio", column="video", encoder=ENCODER, audio_of="video", max_seconds=1, optional=True
)
JOB = Path(__file__).parents[2] / "jobs" / "digit_arithmetic.yaml"


@pytest.mark.shared
def test_the_digit_job_reads_real_recordings(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shared / "data" / "avmnist_smil"
    for entry in source.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    for name, num_rows in (("arith_train.jsonl", 300), ("arith_test.jsonl", 100)):
        (tmp_path / name).unlink()
        lines = (source / name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:num_rows]))
    monkeypatch.setenv("DATA", str(tmp_path))
    job, dataset = load_dataset(load_spec(JOB, Job))
    sizes = {name: len(rows) for name, rows in dataset.splits.items()}
    assert sizes["train"] + sizes["validation"] == 300
    assert sizes["test"] == 100
    assert not any(dataset.invalid.values())
    assert set(job.tasks["answer"].classes) <= set(range(19))
    media = {name: options for name, options in job.inputs.items() if options.type != "text"}
    sample = Preprocessor(media).from_row(dataset.splits["test"][0])
    assert sample.features["image"][0]["pixel_values"].shape == (3, 28, 28)
    assert sample.features["audio"][0]["mel"].shape == (40, 101)


@pytest.mark.shared
def test_real_clips_one_of_them_with_sound(shared: Path) -> None:
    preprocessor = Preprocessor({"video": VIDEO, "sound": TRACK})
    has_audio = {}
    for path in sorted((shared / "data" / "video_clips").glob("*.mp4")):
        content = path.read_bytes()
        sample = preprocessor.from_values({"video": content})
        [features] = sample.features["video"]
        assert features["frames"].shape == (4, 3, 32, 32)
        assert features["frames"].std() > 0.1
        np.testing.assert_allclose(features["frame_times"], [0.25, 0.75, 1.25, 1.75], atol=0.05)
        has_audio[path.stem] = "sound" in sample.features
        with pytest.raises(InvalidInputError, match="truncated"):
            build_modality(VIDEO).decode(content[: len(content) // 2])
    assert has_audio == {
        "bigbuckbunny": True,
        "bikes": False,
        "carphone_distorted": False,
        "carphone_pristine": False,
    }


@pytest.mark.shared
def test_digits_that_move_and_are_spoken(shared: Path) -> None:
    preprocessor = Preprocessor({"video": VIDEO, "sound": TRACK})
    for row in read_all(str(shared / "data" / "digit_video" / "test.jsonl"))[0][:5]:
        sample = preprocessor.from_row(row)
        assert sample.features["video"][0]["frames"].shape == (4, 3, 32, 32)
        assert sample.features["sound"][0]["mel"].shape == (40, 101)


@pytest.mark.shared
def test_a_wrist_sensor(shared: Path) -> None:
    rows = [
        _parse_channels(line) for line in _lines(shared / "data" / "sensors_uea" / "BasicMotions_TRAIN.ts")
    ]
    channels = ["ax", "ay", "az", "gx", "gy", "gz"]
    options = TimeseriesInput(type="timeseries", column="sensor", channels=channels, encoder=ENCODER)
    modality = TimeSeriesModality(TimeSeriesModality.fit(options, rows))
    batch = modality.collate([modality.process(modality.decode(row)) for row in rows])
    assert batch["values"].shape == (40, 6, 100)
    middles = np.median(batch["values"], axis=(0, 2))
    np.testing.assert_allclose(middles, 0, atol=1e-5)
    assert batch["observed"].all()


def _lines(path: Path) -> list[str]:
    return path.read_text().partition("@data")[2].split()


def _parse_channels(line: str) -> Any:
    """Parse the channels of a line of the .ts format, without its class."""
    return [[float(cell) for cell in channel.split(",")] for channel in line.split(":")[:-1]]
