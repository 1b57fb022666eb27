import io
import sys
import time
from pathlib import Path

import espeakng_loader
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from scipy.signal import stft

from rayfuse.demo import speech
from rayfuse.demo.speech import (
    MAX_SECONDS,
    SAMPLE_RATE,
    Clip,
    VoiceStyle,
    synthesize_digits,
    trim_silence,
    voice_styles,
    wav_bytes,
)
from rayfuse.errors import ResourceError

PLAIN = VoiceStyle("en-us+f2", 165, 50)  # a voice with flutter and noise, where eSpeak's state shows


@pytest.fixture(scope="module")
def clips() -> dict[str, list[Clip]]:
    return {
        "train": synthesize_digits(voice_styles("train")),
        "test": synthesize_digits(voice_styles("test")),
    }


def _same(first: list[Clip], second: list[Clip]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(one.samples, other.samples) for one, other in zip(first, second, strict=True)
    )


def test_voices_and_styles_differ_between_splits() -> None:
    train, test = voice_styles("train"), voice_styles("test")
    assert len(set(train)) == len(train) == 84
    assert len(set(test)) == len(test) == 16
    assert not {one.voice.split("+")[1] for one in train} & {one.voice.split("+")[1] for one in test}
    assert not {(one.speed, one.pitch) for one in train} & {(one.speed, one.pitch) for one in test}


def test_every_style_gives_different_clips(clips: dict[str, list[Clip]]) -> None:
    for split in ("train", "test"):
        assert [clip.digit for clip in clips[split]] == list(range(10)) * (len(clips[split]) // 10)
    everything = clips["train"] + clips["test"]
    assert len({clip.samples.tobytes() for clip in everything}) == len(everything)


def test_clips_have_the_length_and_loudness_of_a_word(clips: dict[str, list[Clip]]) -> None:
    for clip in clips["train"] + clips["test"]:
        assert (clip.samples.dtype.name, clip.samples.ndim) == ("int16", 1)
        assert 0.1 < len(clip.samples) / SAMPLE_RATE <= MAX_SECONDS, clip.style
        assert np.abs(clip.samples.astype(np.int32)).max() > 3000, clip.style
        assert len(trim_silence(clip.samples)) == len(clip.samples), clip.style


def test_digits_are_recognized_in_new_voices(clips: dict[str, list[Clip]]) -> None:
    """A nearest neighbour on spectrograms, which knows only the training voices."""
    train = np.stack([_spectrogram(clip) for clip in clips["train"]])
    test = np.stack([_spectrogram(clip) for clip in clips["test"]])
    nearest = (train @ test.T).argmax(axis=0)
    right = [
        clips["train"][found].digit == clip.digit
        for found, clip in zip(nearest.tolist(), clips["test"], strict=True)
    ]
    assert np.mean(right) > 0.85


def _spectrogram(clip: Clip) -> npt.NDArray[np.float64]:
    """Log power in 32 bands and 24 moments as a unit vector [768] without its mean."""
    _, _, spectrum = stft(clip.samples / 32768, SAMPLE_RATE, nperseg=256, noverlap=176)
    bands = np.abs(spectrum[1:]).reshape(32, 4, -1).mean(axis=1)
    moments = np.linspace(0, bands.shape[1] - 1, 24).round().astype(int)
    values = np.log(bands[:, moments] + 1e-4).ravel()
    values -= values.mean()
    return np.asarray(values / np.linalg.norm(values))


def test_synthesis_does_not_depend_on_earlier_words() -> None:
    first = synthesize_digits([PLAIN])
    synthesize_digits([VoiceStyle("en-gb-scotland+m1", 190, 30)])
    time.sleep(1.01 - time.time() % 1)  # eSpeak's own seed is the clock's second
    assert _same(first, synthesize_digits([PLAIN]))


def test_speed_and_pitch_change_the_voice() -> None:
    slow, fast, high = synthesize_digits(
        [PLAIN, VoiceStyle("en-us+f2", 240, 50), VoiceStyle("en-us+f2", 165, 90)]
    )[7::10]
    assert len(slow.samples) > 1.1 * len(fast.samples)
    assert not np.array_equal(slow.samples, high.samples)


@pytest.mark.parametrize("voice", ["en-us+nowhere", "xx-nowhere+f2"])
def test_unknown_voice_is_rejected(voice: str) -> None:
    with pytest.raises(ResourceError, match=f"no voice '{voice.replace('+', '.')}'"):
        synthesize_digits([VoiceStyle(voice, 165, 50)])


def test_data_path_longer_than_espeaks_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = tmp_path / ("x" * 120) / ("y" * 120) / "espeak-ng-data"
    far.parent.mkdir(parents=True)
    far.symlink_to(espeakng_loader.get_data_path())
    expected = synthesize_digits([PLAIN])
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(far))
    assert _same(synthesize_digits([PLAIN]), expected)


def test_no_short_path_names_tmpdir(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 200)
    with pytest.raises(ResourceError, match="TMPDIR"):
        speech.short_path(deep / "espeak-ng-data", deep)


def test_folder_without_espeak_data_is_an_error_not_an_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(ResourceError, match="does not start"):
        synthesize_digits([PLAIN])


def test_missing_or_broken_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "libespeak-ng.so"
    monkeypatch.setattr(espeakng_loader, "get_library_path", lambda: str(broken))
    with pytest.raises(ResourceError, match=r"lacks .*libespeak-ng\.so"):
        synthesize_digits([PLAIN])
    broken.write_bytes(b"not a library")
    with pytest.raises(ResourceError, match="cannot be loaded"):
        synthesize_digits([PLAIN])
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ResourceError, match=r"pip install 'rayfuse\[demo\]'"):
        synthesize_digits([PLAIN])


def test_trim_removes_silence_but_not_quiet_ends() -> None:
    silence = np.zeros(1000, np.int16)
    word = np.concatenate([np.full(50, 100), np.full(500, -20000), np.full(50, 100)]).astype(np.int16)
    assert np.array_equal(trim_silence(np.concatenate([silence, word, silence]), margin=0), word)
    assert len(trim_silence(np.concatenate([silence, word, silence]), margin=80)) == len(word) + 160
    assert trim_silence(silence).size == 0
    assert trim_silence(silence[:0]).size == 0


def test_wav_keeps_every_sample(clips: dict[str, list[Clip]]) -> None:
    clip = clips["test"][3]
    read, rate = soundfile.read(io.BytesIO(wav_bytes(clip.samples)), dtype="int16")
    assert rate == SAMPLE_RATE
    assert np.array_equal(read, clip.samples)
