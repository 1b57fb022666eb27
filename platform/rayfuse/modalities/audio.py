"""Audio in any format that libsndfile or FFmpeg reads, as one channel at one sample rate."""

import io
import wave
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any

import numpy as np

from rayfuse.errors import InvalidInputError, MissingInputError, SpecError
from rayfuse.modalities.audio_headers import describe_truncation, is_mp3, is_streamed_flac
from rayfuse.modalities.base import Features, Modality, SaliencyMap
from rayfuse.modalities.decode_memory import reserve
from rayfuse.modalities.media import MediaDecodeError, open_container, read_packet_times
from rayfuse.modalities.mel import log_mel
from rayfuse.modalities.pretrained import WHISPER_STRIDE, load_feature_extractor, whisper_num_positions
from rayfuse.modalities.resampler import Resampler
from rayfuse.spec.encoders import HuggingFaceEncoderConfig
from rayfuse.spec.inputs import AudioInput

_MAX_SAMPLE_RATE = 1_000_000  # samples per second
_MAX_AMPLITUDE = 1e6  # samples lie in [-1, 1]; 16-bit integers stored as floats reach 32768
_COPIES = 3
"""Arrays of all samples at once: blocks, the whole clip, and its result."""
_BLOCK_SAMPLES = 1_000_000
_MAX_VORBIS_BLOCK = 8192
"""Samples at the end of an Ogg stream that libsndfile may not decode (Vorbis I specification, 4.2.2)."""
_UNKNOWN_FORMAT_CODES = (1, 4)  # libsndfile's codes for unknown formats and encodings

_SAMPLES = "input_values"
"""Normalized samples, of extractors for encoders that read waveforms."""
_NO_SAMPLES = np.empty((0, 0))

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
    `features`; for a Hugging Face encoder the features of its own feature extractor, and for one of variable length
    `attention_mask`, int64 (steps,), 0 where they are padded.
    """

    options: AudioInput
    example_filename = "clip.wav"
    media_types = ("audio/", "video/", "application/octet-stream")
    is_isolated = True

    def __init__(self, options: AudioInput) -> None:
        super().__init__(options)
        self.num_samples = max(1, round(options.sample_rate * options.max_seconds))

    def decode(self, value: Any) -> np.ndarray:
        """Decode the bytes of an audio or video file to float32 (samples,) at `sample_rate`, at most `max_seconds` long."""
        samples = self.decode_from(value, 0.0, self.options.max_seconds)
        if not len(samples):
            raise InvalidInputError("the audio file has no samples")
        return samples[: self.num_samples]

    def decode_from(self, value: Any, start: float, seconds: float) -> np.ndarray:
        """Decode `seconds` of a file behind the first `start` seconds, float32 (samples,); empty behind its end.

        Raises InvalidInputError if it cannot be read.
        """
        if not isinstance(value, bytes):
            raise InvalidInputError(
                f"expected the bytes of an audio file, or its path in a row, got {type(value).__name__}"
            )
        if not value:
            raise InvalidInputError("the audio file is empty (0 bytes)")
        num_samples = round(seconds * self.options.sample_rate)
        reserve(_COPIES * 4 * num_samples, f"a clip of {seconds:g} s")
        if missing := describe_truncation(value):
            raise InvalidInputError(f"the audio file is truncated: {missing}")
        return self._read_mono(value, start, seconds)[: max(1, num_samples)]

    def process(self, decoded: np.ndarray) -> Features:
        if self._extractor is not None:
            return self._pad_features(self._extract(decoded))
        padded = np.pad(decoded, (0, max(0, self.num_samples - len(decoded))))
        if self.options.features == "waveform":
            return {"waveform": padded}
        return {"mel": log_mel(padded, self.options.sample_rate, self.options.n_mels)}

    def to_arrays(self, decoded: np.ndarray) -> Features:
        """Return the samples: extractors of Hugging Face need heavy libraries."""
        return {"samples": decoded}

    def process_arrays(self, arrays: Features) -> Features:
        return self.process(arrays["samples"])

    def _extract(self, samples: np.ndarray) -> Features:
        """Return the features of a Hugging Face extractor for a clip that is not padded, and their mask if it has one.

        Extractors normalize by the statistics of what they get, which must not be padding.
        """
        found = self._extractor(
            samples, sampling_rate=self.options.sample_rate, return_tensors="np", **self._extractor_kwargs
        )
        features = {name: np.asarray(values[0]) for name, values in found.items()}
        if self._reads_fixed_windows:
            features.pop("attention_mask", None)
        elif "attention_mask" not in features and features.get(_SAMPLES, _NO_SAMPLES).ndim == 1:
            features["attention_mask"] = np.ones(len(features[_SAMPLES]))
        return {
            name: values.astype(np.int64 if name == "attention_mask" else np.float32)
            for name, values in features.items()
        }

    def _pad_features(self, features: Features) -> Features:
        """Pad features at the end to those of a clip of `max_seconds`; padding is masked where there is a mask."""
        padded = {}
        for name, values in features.items():
            widths = [
                (0, max(0, full - own))
                for full, own in zip(self._full_shapes[name], values.shape, strict=True)
            ]
            fill = 0 if name == "attention_mask" else getattr(self._extractor, "padding_value", 0.0)
            padded[name] = np.pad(values, widths, constant_values=fill)
        return padded

    @cached_property
    def _full_shapes(self) -> dict[str, tuple[int, ...]]:
        silence = np.zeros(self.num_samples, dtype=np.float32)
        return {name: values.shape for name, values in self._extract(silence).items()}

    def dummy_features(self) -> Features:
        return self.process(np.zeros(self.num_samples, dtype=np.float32))

    def example(self) -> bytes:
        return _example_wav()

    def load_libraries(self) -> None:
        """Import also what containers and other sample rates need."""
        import av  # noqa: F401
        import scipy.signal  # noqa: F401

        super().load_libraries()

    def description(self) -> str:
        return f"an audio file; the first {self.options.max_seconds:g} s are read"

    def saliency_map(self, shapes: Mapping[str, tuple[int, ...]]) -> SaliencyMap | None:
        """Group attributions by time, summed over the frequency bands."""
        for (name, num_axes), sum_axes in _TIME_FEATURES.items():
            if len(shapes.get(name, ())) == num_axes:
                return SaliencyMap(name, sum_axes)
        return None

    def _read_mono(self, value: bytes, start: float, seconds: float) -> np.ndarray:
        """Read with libsndfile, which reports errors exactly; with FFmpeg if libsndfile does not know the format.

        MP3 is read with FFmpeg, as libsndfile estimates the length of one with a variable bit rate, and stops there; so is
        FLAC without a stated length, which libsndfile does not read.
        """
        import soundfile

        rate = self.options.sample_rate
        if is_mp3(value) or is_streamed_flac(value):
            return _read_container(value, start, seconds, rate)
        try:
            return _read_audio_file(value, start, seconds, rate)
        except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError) as error:
            reason = str(getattr(error, "error_string", None) or error).partition("\n")[0]
            if getattr(error, "code", None) not in _UNKNOWN_FORMAT_CODES:
                raise InvalidInputError(f"not a readable audio file: {reason}") from None
        try:
            return _read_container(value, start, seconds, rate)
        except MediaDecodeError as unreadable:
            raise unreadable from None
        except MissingInputError as absent:
            raise absent if self.options.audio_of is not None else InvalidInputError(str(absent)) from None

    @property
    def _reads_fixed_windows(self) -> bool:
        """True for Whisper, whose encoder attends to the silence after a clip too."""
        return hasattr(self._extractor, "n_samples")

    @cached_property
    def _extractor_kwargs(self) -> dict[str, Any]:
        """Arguments with which Whisper pads clips to `max_seconds` instead of 30 s; its encoder is cut to fit."""
        if not self._reads_fixed_windows:
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


def _read_audio_file(value: bytes, start: float, seconds: float, target_rate: int) -> np.ndarray:
    """Read `seconds` of an audio file from `start` on, channels averaged, float32 (samples,) at `target_rate`.

    Raises libsndfile's errors for files that it cannot read.
    """
    import soundfile

    with soundfile.SoundFile(io.BytesIO(value)) as file:
        _check_rate(file.samplerate)
        first = min(file.frames, round(start * file.samplerate))
        file.seek(first)
        wanted = min(file.frames - first, int(seconds * file.samplerate) + 1)
        resampler = Resampler(file.samplerate, target_rate)
        size = max(1, _BLOCK_SAMPLES // file.channels)  # a small file can have hundreds of channels
        found = 0
        while len(block := file.read(min(size, wanted - found), dtype="float32", always_2d=True)):
            resampler.add(_checked(block.mean(axis=1)))
            found += len(block)
        tolerance = _MAX_VORBIS_BLOCK if file.format == "OGG" else 0
        if found < wanted - tolerance:
            raise InvalidInputError(f"the audio file is truncated: {first + found} of {file.frames} samples")
    return resampler.finish()


def _read_container(value: bytes, start: float, seconds: float, target_rate: int) -> np.ndarray:
    """Read `seconds` of the first audio track of a container from `start` on. Raises MissingInputError if it has none."""
    with open_container(value, "audio file") as container:
        stream = _audio_stream(container)
        read_packet_times(stream, start + seconds, "audio track")
    with open_container(value, "audio file") as container:
        return _decode_stream(container, _audio_stream(container), start, seconds, target_rate)


def _audio_stream(container: Any) -> Any:
    if not container.streams.audio:
        raise MissingInputError("the file has no audio track")
    stream = container.streams.audio[0]
    _check_rate(stream.rate)
    return stream


def _decode_stream(container: Any, stream: Any, start: float, seconds: float, target_rate: int) -> np.ndarray:
    from av import AudioResampler

    rate: int = stream.rate
    planes = AudioResampler(format="fltp", rate=rate)
    resampler = Resampler(rate, target_rate)
    skipped, wanted = round(start * rate), int(seconds * rate) + 1
    for frame in container.decode(stream):
        for part in planes.resample(frame):  # frames may have another rate than the stream states
            mono = _checked(part.to_ndarray().mean(axis=0))
            left = mono[skipped : skipped + wanted]
            skipped = max(0, skipped - len(mono))
            resampler.add(left)
            wanted -= len(left)
        if wanted <= 0:
            break
    return resampler.finish()


def _checked(samples: np.ndarray) -> np.ndarray:
    if len(samples) and not np.abs(samples).max() <= _MAX_AMPLITUDE:
        raise InvalidInputError(
            f"the audio file has samples that are NaN, infinite or above {_MAX_AMPLITUDE:g}; the usual range is -1 to 1"
        )
    return samples


def _check_rate(rate: int) -> None:
    if not 0 < rate <= _MAX_SAMPLE_RATE:
        raise InvalidInputError(
            f"the sample rate {rate} is outside 1 to {_MAX_SAMPLE_RATE} Hz; resample the file"
        )


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
