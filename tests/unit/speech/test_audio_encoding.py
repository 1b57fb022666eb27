"""Files that grow piece by piece."""

import io

import av
import numpy as np
import pytest
import soundfile

from rayfuse.speech.audio_encoding import FORMATS, PCM_RATE, AudioEncoder

RATE = 22050
TONE = (0.4 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def encode(name: str, *, is_whole: bool = False) -> list[bytes]:
    encoder = AudioEncoder(name, RATE, is_whole=is_whole)
    return [encoder.encode(TONE), encoder.encode(TONE), encoder.finish()]


def decode(content: bytes) -> tuple[np.ndarray, int]:
    with av.open(io.BytesIO(content)) as file:
        [stream] = file.streams
        frames = [frame.to_ndarray() for frame in file.decode(stream)]
        scale = 32768 if np.issubdtype(frames[0].dtype, np.integer) else 1
        return np.concatenate(frames, axis=1)[0] / scale, stream.rate


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "pcm"])
def test_the_pieces_are_a_file_with_the_sound(name: str, is_whole: bool) -> None:
    pieces = encode(name, is_whole=is_whole)
    samples, rate = decode(b"".join(pieces))
    assert samples.size / rate == pytest.approx(2.0, abs=0.1)
    middle = samples[rate // 2 : rate // 2 + rate]
    assert np.abs(np.fft.rfft(middle)).argmax() == pytest.approx(440, abs=1)
    assert middle.std() == pytest.approx(TONE.std(), rel=0.1)
    assert bool(pieces[0]) == (FORMATS[name].grows and not is_whole)


def test_pcm_has_the_rate_of_openai() -> None:
    content = b"".join(encode("pcm"))
    assert len(content) == 2 * 2 * PCM_RATE
    samples = np.frombuffer(content, "<i2")[PCM_RATE // 2 :][:PCM_RATE]
    assert np.abs(np.fft.rfft(samples)).argmax() == 440


def test_lossless_formats_have_the_samples() -> None:
    expected = np.rint(np.tile(TONE, 2) * 32767).astype(np.int16)
    for name, is_whole in (("wav", False), ("wav", True), ("flac", False), ("flac", True)):
        samples, rate = soundfile.read(io.BytesIO(b"".join(encode(name, is_whole=is_whole))), dtype="int16")
        assert rate == RATE
        assert np.array_equal(samples, expected), name


def test_a_whole_wav_states_its_length() -> None:
    import wave

    with wave.open(io.BytesIO(b"".join(encode("wav", is_whole=True)))) as file:
        assert file.getnframes() == 2 * RATE
