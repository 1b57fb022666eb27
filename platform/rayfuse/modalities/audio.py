"""Audio in any format that libsndfile or FFmpeg reads, as one channel at one sample rate."""

import io
import wave
from collections.abc import Mapping
from fractions import Fraction
from functools import cache, cached_property
from typing import Any

import numpy as np

from rayfuse.errors import InvalidInputError, MissingInputError, SpecError
from rayfuse.modalities.base import Features, Modality, SaliencyMap
from rayfuse.modalities.media import MediaDecodeError, open_container, read_packet_times
from rayfuse.modalities.mel import log_mel
from rayfuse.modalities.pretrained import WHISPER_STRIDE, load_feature_extractor, whisper_num_positions
from rayfuse.spec.encoders import HuggingFaceEncoderConfig
from rayfuse.spec.inputs import AudioInput

_MAX_SAMPLE_RATE = 1_000_000  # samples per second
_MAX_AMPLITUDE = 1e6  # samples lie in [-1, 1]; 16-bit integers stored as floats reach 32768
_BLOCK_FRAMES = 65_536
_UNKNOWN_FORMAT_CODES = (1, 4)  # libsndfile's codes for unknown formats and encodings
_MAX_DENOMINATOR = 10_000
_PLACEHOLDER_SIZE = 0x7FFF0000  # streaming recorders write sizes from here up into the header

_TIME_FEATURES: dict[tuple[str, int], tuple[int, ...]] = {
    ("mel", 2): (-2,),
    ("waveform", 1): (),
    ("input_features", 2): (-2,),
    ("input_values", 1): (),
    ("input_values", 2): (-1,),
}
"""Axes of frequency bands, by feature and its number of axes."""


class AudioModality(Modality):
    """Audio clips, cut or padded to `max_seconds`.

    Features: `mel`, float32 (bands, frames), or `waveform`, float32 (sample_rate × max_seconds,), by the option
    `features`; for a Hugging Face encoder the features of its own feature extractor.
    """

    options: AudioInput
    example_filename = "clip.wav"
    media_types = ("audio/", "video/", "application/octet-stream")

    def __init__(self, options: AudioInput) -> None:
        super().__init__(options)
        self.num_samples = max(1, round(options.sample_rate * options.max_seconds))

    def decode(self, value: Any) -> np.ndarray:
        """Decode the bytes of an audio or video file to float32 (samples,) at `sample_rate`, at most `max_seconds` long."""
        if not isinstance(value, bytes):
            raise InvalidInputError(
                f"expected the bytes of an audio file, or its path in a row, got {type(value).__name__}"
            )
        if not value:
            raise InvalidInputError("the audio file is empty (0 bytes)")
        _check_not_truncated(value)
        mono, rate = self._read_mono(value)
        if not len(mono):
            raise InvalidInputError("the audio file has no samples")
        if not np.abs(mono).max() <= _MAX_AMPLITUDE:
            raise InvalidInputError(
                f"the audio file has samples that are NaN, infinite or above {_MAX_AMPLITUDE:g}; the usual range is -1 to 1"
            )
        return _resample(mono, rate, self.options.sample_rate)[: self.num_samples]

    def process(self, decoded: np.ndarray) -> Features:
        padded = np.pad(decoded, (0, max(0, self.num_samples - len(decoded))))
        if self._extractor is None:
            if self.options.features == "waveform":
                return {"waveform": padded}
            return {"mel": log_mel(padded, self.options.sample_rate, self.options.n_mels)}
        features = self._extractor(
            padded, sampling_rate=self.options.sample_rate, return_tensors="np", **self._extractor_kwargs
        )
        return {
            name: np.asarray(values[0], dtype=np.float32)
            for name, values in features.items()
            if "mask" not in name
        }

    def dummy_features(self) -> Features:
        return self.process(np.zeros(self.num_samples, dtype=np.float32))

    def example(self) -> bytes:
        return _example_wav()

    def description(self) -> str:
        return f"an audio file; the first {self.options.max_seconds:g} s are read"

    def saliency_map(self, shapes: Mapping[str, tuple[int, ...]]) -> SaliencyMap | None:
        """Group attributions by time, summed over the frequency bands."""
        for (name, num_axes), sum_axes in _TIME_FEATURES.items():
            if len(shapes.get(name, ())) == num_axes:
                return SaliencyMap(name, sum_axes)
        return None

    def _read_mono(self, value: bytes) -> tuple[np.ndarray, int]:
        """Read with libsndfile, which reports errors exactly; with FFmpeg if libsndfile does not know the format."""
        import soundfile

        try:
            return _read_audio_file(value, self.options.max_seconds)
        except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError) as error:
            reason = str(getattr(error, "error_string", None) or error).partition("\n")[0]
            broken = InvalidInputError(f"not a readable audio file: {reason}")
            if getattr(error, "code", None) not in _UNKNOWN_FORMAT_CODES:
                raise broken from None
        try:
            return _read_container(value, self.options.max_seconds)
        except MediaDecodeError:
            raise broken from None
        except MissingInputError as absent:
            raise absent if self.options.audio_of is not None else InvalidInputError(str(absent)) from None

    @cached_property
    def _extractor_kwargs(self) -> dict[str, Any]:
        """Arguments with which Whisper pads clips to `max_seconds` instead of 30 s; its encoder is cut to fit."""
        if not hasattr(self._extractor, "n_samples"):
            return {}
        return {
            "padding": "max_length",
            "max_length": whisper_num_positions(self.num_samples) * WHISPER_STRIDE,
        }

    @cached_property
    def _extractor(self) -> Any:
        encoder = self.options.encoder
        if not isinstance(encoder, HuggingFaceEncoderConfig):
            return None
        extractor = load_feature_extractor(encoder.model)
        if extractor.sampling_rate != self.options.sample_rate:
            raise SpecError(
                f"sample_rate: {self.options.sample_rate} does not match the {extractor.sampling_rate} of "
                f"{encoder.model}; set sample_rate: {extractor.sampling_rate}"
            )
        longest = getattr(extractor, "chunk_length", None)
        if longest and self.options.max_seconds > longest:
            raise SpecError(
                f"max_seconds: {self.options.max_seconds:g} is above the {longest} s that {encoder.model} reads; "
                f"set max_seconds: {longest} or less"
            )
        return extractor


def _read_audio_file(value: bytes, seconds: float) -> tuple[np.ndarray, int]:
    """Read the first `seconds` of an audio file, channels averaged; also return the sample rate.

    Raises libsndfile's errors for files that it cannot read.
    """
    import soundfile

    with soundfile.SoundFile(io.BytesIO(value)) as file:
        rate = file.samplerate
        _check_rate(rate)
        blocks = file.blocks(_BLOCK_FRAMES, frames=int(seconds * rate) + 1, dtype="float32", always_2d=True)
        # In blocks, as a small file can unpack to hundreds of channels.
        parts = [block.mean(axis=1) for block in blocks]
    return np.concatenate([np.empty(0, dtype=np.float32), *parts]), rate


def _read_container(value: bytes, seconds: float) -> tuple[np.ndarray, int]:
    """Read the first audio track of a container. Raises MissingInputError if there is none."""
    with open_container(value, "audio file") as container:
        stream = _audio_stream(container)
        read_packet_times(stream, seconds, "audio track")
    with open_container(value, "audio file") as container:
        return _decode_stream(container, _audio_stream(container), seconds)


def _audio_stream(container: Any) -> Any:
    if not container.streams.audio:
        raise MissingInputError("the file has no audio track")
    stream = container.streams.audio[0]
    _check_rate(stream.rate)
    return stream


def _decode_stream(container: Any, stream: Any, seconds: float) -> tuple[np.ndarray, int]:
    from av import AudioResampler

    rate: int = stream.rate
    planes = AudioResampler(format="fltp", rate=rate)
    parts = [np.empty(0, dtype=np.float32)]
    wanted = int(seconds * rate) + 1
    for frame in container.decode(stream):
        parts += [part.to_ndarray().mean(axis=0) for part in planes.resample(frame)]
        wanted -= frame.samples
        if wanted <= 0:
            break
    return np.concatenate(parts)[: int(seconds * rate) + 1], rate


def _check_rate(rate: int) -> None:
    if not 0 < rate <= _MAX_SAMPLE_RATE:
        raise InvalidInputError(
            f"the sample rate {rate} is outside 1 to {_MAX_SAMPLE_RATE} Hz; resample the file"
        )


def _check_not_truncated(value: bytes) -> None:
    """Raise InvalidInputError for a WAV shorter than its header states, which libsndfile accepts."""
    if value[:4] == b"RIFF" and value[8:12] == b"WAVE":
        size = int.from_bytes(value[4:8], "little") + 8
        if len(value) < size * 0.99 and size < _PLACEHOLDER_SIZE:
            raise InvalidInputError(f"the audio file is truncated: {len(value)} of {size} bytes")


def _resample(samples: np.ndarray, rate: int, target_rate: int) -> np.ndarray:
    if rate == target_rate:
        return samples
    from scipy.signal import resample_poly

    # An odd rate such as 44101 would need a filter of a million taps; the error of this ratio is below 0.01%.
    ratio = Fraction(target_rate, rate).limit_denominator(_MAX_DENOMINATOR)
    return np.asarray(resample_poly(samples, ratio.numerator, ratio.denominator), dtype=np.float32)


@cache
def _example_wav() -> bytes:
    """Encode 20 ms of a square wave."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(1)
        writer.setframerate(8000)
        writer.writeframes(bytes(128 + (64 if i % 40 < 20 else -64) for i in range(160)))
    return file.getvalue()
