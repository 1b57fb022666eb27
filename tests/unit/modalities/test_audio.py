"""Audio of every format becomes one channel at one rate; invalid files are rejected with a reason."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny_clips
import tiny_encoders

from rayfuse.errors import InvalidInputError, SpecError
from rayfuse.modalities.audio import AudioModality
from rayfuse.spec.encoders import ConvEncoderConfig, CustomEncoderConfig, HuggingFaceEncoderConfig
from rayfuse.spec.inputs import AudioInput

RATE = 8000


def modality(**options: Any) -> AudioModality:
    settings = {"sample_rate": RATE, "max_seconds": 1.0, "encoder": ConvEncoderConfig(type="conv"), **options}
    return AudioModality(AudioInput(type="audio", column="audio", **settings))


def tone(seconds: float = 1.0, rate: int = RATE, pitch: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


def encode(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def pitch_of(samples: np.ndarray, rate: int = RATE) -> float:
    strength = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 8 * len(samples)))
    return float(strength.argmax() * rate / (8 * len(samples)))


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("WAV", "FLOAT"), ("FLAC", None), ("OGG", None), ("MP3", None)],
)
def test_formats(kind: str, subtype: str | None) -> None:
    found = modality().decode(encode(tone(), kind=kind, subtype=subtype))
    assert found.dtype == np.float32
    assert len(found) == RATE
    assert pitch_of(found) == pytest.approx(440, abs=1)
    assert np.abs(found).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("rate", [1000, 4000, 8000, 11025, 16000, 22050, 44100, 44101, 48000, 96001, 192000])
def test_resampling_preserves_pitch_and_duration(rate: int) -> None:
    found = modality().decode(encode(tone(rate=rate, pitch=300), rate))
    assert len(found) == pytest.approx(RATE, abs=10)
    assert pitch_of(found) == pytest.approx(300, abs=1)
    assert np.abs(found[500:-500]).max() == pytest.approx(0.5, abs=0.02)


def test_resampling_does_not_alias() -> None:
    found = modality().decode(encode(tone(rate=48000, pitch=7700), 48000))
    assert np.abs(found[500:-500]).max() < 0.01


def test_channels_are_averaged() -> None:
    left = tone()
    stereo = np.stack([left, np.zeros_like(left)], axis=1)
    alone = modality().decode(encode(left, subtype="FLOAT"))
    np.testing.assert_allclose(modality().decode(encode(stereo, subtype="FLOAT")), alone / 2, atol=1e-6)
    many = np.repeat(left[:, None], 64, axis=1)
    np.testing.assert_allclose(modality().decode(encode(many, subtype="FLOAT")), alone, atol=1e-6)


def test_long_clips_are_cut_and_short_ones_padded_with_silence() -> None:
    assert len(modality().decode(encode(tone(3)))) == RATE
    short = modality().decode(encode(tone(0.25)))
    assert len(short) == RATE // 4
    custom = modality(features="waveform", encoder=CustomEncoderConfig(type="my.module:Ears"))
    waveform = custom.process(short)["waveform"]
    assert waveform.shape == (RATE,)
    assert waveform.dtype == np.float32
    np.testing.assert_array_equal(waveform[: RATE // 4], short)
    assert not waveform[RATE // 4 :].any()
    assert not custom.dummy_features()["waveform"].any()
    assert modality(max_seconds=1e-6).dummy_features()["mel"].shape == (40, 1)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"", r"the audio file is empty \(0 bytes\)"),
        (b"This is a text.", "not a readable audio file, or it is truncated: Invalid data"),
        (encode(np.zeros(0)), "the audio file has no samples"),
        (encode(tone())[:44], r"the audio file is truncated: 44 of 16044 bytes"),
        (encode(tone())[:9000], "truncated: 9000 of 16044"),
        (encode(tone())[:20], "truncated: 20 of"),
        (encode(tone(), kind="FLAC")[:4000], "not a readable audio file: "),
        (encode(tone(), kind="OGG")[:2000], "the audio file is truncated: its last page is incomplete"),
        (encode(np.array([0.1, np.nan]), subtype="FLOAT"), "NaN, infinite"),
        (encode(np.array([0.1, np.inf]), subtype="FLOAT"), "NaN, infinite"),
        (encode(np.array([0.1, 1e30]), subtype="DOUBLE"), "or above"),
        (encode(tone(0.1), 2**31 - 1), "the sample rate 2147483647 is outside 1 to 1000000 Hz"),
        (3, "expected the bytes of an audio file, or its path in a row, got int"),
        ({"array": [0.0]}, "expected the bytes of an audio file, or its path in a row, got dict"),
    ],
    ids=lambda given: given[:30] if isinstance(given, str) else type(given).__name__,  # files hold the time
)
def test_invalid_files_are_rejected(value: Any, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        modality().decode(value)


STEPS = np.concatenate([tone(1, 16000, pitch) for pitch in (300, 500, 700, 900)])
FORMATS = [
    ("WAV", "PCM_16"), ("WAVEX", "PCM_24"), ("RF64", "PCM_16"), ("W64", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "PCM_16"),
    ("CAF", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip


def loudest(samples: np.ndarray) -> list[int]:
    """Return the frequency of each second at 16 kHz."""
    parts = samples[: len(samples) // 16000 * 16000].reshape(-1, 16000)
    return [int(np.abs(np.fft.rfft(part)).argmax()) for part in parts]


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_whole_files_are_read_whole_and_cut_files_are_rejected(kind: str, subtype: str) -> None:
    reader = modality(sample_rate=16000, max_seconds=10.0)
    whole = encode(STEPS, 16000, kind, subtype)
    found = reader.decode(whole)
    assert loudest(found) == [300, 500, 700, 900]
    assert abs(len(found) - len(STEPS)) <= 1152
    for part in (0.5, 0.9):
        with pytest.raises(InvalidInputError, match=r"truncated: |not a readable audio file"):
            reader.decode(whole[: int(len(whole) * part)])


def test_an_ogg_file_whose_last_block_is_not_decoded_is_whole(shared: Path) -> None:
    """Libsndfile decodes 79872 of its 80016 samples, and it has its last page."""
    path = shared / "data" / "esc10_16k" / "audio" / "1-17565-A.ogg"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    assert len(modality(sample_rate=16000, max_seconds=10.0).decode(path.read_bytes())) == 79872


@pytest.mark.parametrize("kind", ["MP3", "OGG", "WAV"])
def test_a_clip_holds_nothing_of_the_one_before(kind: str) -> None:
    reader = modality(sample_rate=16000, max_seconds=10.0)
    silence = encode(np.zeros(20000), 16000, kind)
    expected = reader.decode(silence)
    for pitch in (2000, 3000):
        reader.decode(encode(tone(5, 16000, pitch), 16000))
        again = reader.decode(silence)
        assert np.array_equal(again, expected)
        assert np.abs(again).max() < 1e-3


@pytest.mark.parametrize("quiet_first", [True, False])
def test_an_mp3_of_variable_bit_rate_without_a_header_is_read_whole(quiet_first: bool) -> None:
    quiet, loud = np.zeros(64000), np.random.default_rng(0).normal(0, 0.2, 64000).clip(-1, 1)
    samples = np.concatenate([quiet, loud] if quiet_first else [loud, quiet])
    found = modality(sample_rate=16000, max_seconds=30.0).decode(
        tiny_clips.variable_bit_rate_mp3(samples, 16000)
    )
    assert abs(len(found) - 128000) <= 3 * 1152
    loudness = [
        float(np.sqrt((found[start : start + 16000] ** 2).mean())) for start in range(0, 128000, 16000)
    ]
    assert [value > 0.15 for value in loudness[:4]] == [not quiet_first] * 4
    assert [value > 0.15 for value in loudness[5:]] == [quiet_first] * 3


def test_a_streamed_flac_states_no_length() -> None:
    value = bytearray(encode(tone(), kind="FLAC"))
    value[21] &= 0xF0
    value[22:26] = bytes(4)
    found = modality().decode(bytes(value))
    np.testing.assert_allclose(found, tone(), atol=1e-4)


def test_a_streamed_wav_has_a_placeholder_size() -> None:
    value = bytearray(encode(tone()))
    value[4:8] = value[40:44] = b"\xff\xff\xff\xff"
    assert len(modality().decode(bytes(value))) == RATE


@pytest.mark.parametrize(
    ("kind", "rate", "name", "shape"),
    [("wav2vec2", 8000, "input_values", (4000,)), ("whisper", 16000, "input_features", (8, 50))],
)
def test_features_are_those_of_the_pretrained_extractor(
    kind: str, rate: int, name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    encoder = HuggingFaceEncoderConfig(type="huggingface", model=str(getattr(tiny_encoders, kind)(tmp_path)))
    pretrained = modality(encoder=encoder, sample_rate=rate, max_seconds=0.5)
    features = pretrained.process(pretrained.decode(encode(tone(0.1))))
    mask = {"attention_mask": shape} if kind == "wav2vec2" else {}
    assert {key: values.shape for key, values in features.items()} == {name: shape, **mask}
    assert features[name].dtype == np.float32
    assert pretrained.collate([features, pretrained.dummy_features()])[name].shape == (2, *shape)
    wrong = f"sample_rate: 4000 does not match the {rate} of .*; set sample_rate: {rate}"
    with pytest.raises(SpecError, match=wrong):
        modality(encoder=encoder, sample_rate=4000).dummy_features()


def test_max_seconds_is_limited_by_the_extractor(tmp_path: Path) -> None:
    encoder = HuggingFaceEncoderConfig(type="huggingface", model=str(tiny_encoders.whisper(tmp_path)))
    with pytest.raises(SpecError, match="max_seconds: 3 is above the 1 s that .* reads; set max_seconds: 1"):
        modality(encoder=encoder, sample_rate=16000, max_seconds=3.0).dummy_features()
