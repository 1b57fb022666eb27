"""Sound: anything that libsndfile or FFmpeg reads, as one channel at one rate."""

import io
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from rayfuse.errors import BadInput, MissingInput, SpecError
from rayfuse.modalities.base import Features, Modality
from rayfuse.modalities.containers import Unreadable, opened, packet_clock
from rayfuse.modalities.mel import log_mel
from rayfuse.modalities.pretrained import WHISPER_STEP, feature_extractor, whisper_positions
from rayfuse.spec.encoders import HuggingFaceEncoder
from rayfuse.spec.inputs import AudioInput

_FASTEST = 1_000_000  # samples per second
_LOUDEST = 1e6  # sound lies between -1 and 1; whole numbers saved as floats go to 32768
_BLOCK = 65_536
_NOT_ITS_KIND = (1, 4)  # libsndfile's codes for formats and encodings that it does not know
_LARGEST_DIVISOR = 10_000
_PLACEHOLDER = 0x7FFF0000


class AudioModality(Modality):
    """Features as the spec says: `mel`, float32 (bands, frames), or `waveform`, float32 (sample_rate × max_seconds,).

    For a Hugging Face encoder those of its own extractor.
    """

    media_types = ("audio/", "video/", "application/octet-stream")

    def __init__(self, options: AudioInput) -> None:
        self.options = options
        self.length = max(1, round(options.sample_rate * options.max_seconds))

    def decode(self, value: Any) -> np.ndarray:
        """Bytes of a sound file → float32 (samples,) at `sample_rate`, at most `max_seconds` long."""
        if not isinstance(value, bytes):
            raise BadInput(f"a sound file's bytes belong here, not {type(value).__name__}")
        if not value:
            raise BadInput("the sound file is empty (0 bytes)")
        _refuse_cut_off(value)
        mono, rate = self._read_mono(value)
        if not len(mono):
            raise BadInput("the sound file has zero length")
        if not np.abs(mono).max() <= _LOUDEST:
            raise BadInput("the sound file holds samples that are no finite numbers, or far too large ones")
        return _resample(mono, rate, self.options.sample_rate)[: self.length]

    def process(self, decoded: np.ndarray) -> Features:
        padded = np.pad(decoded, (0, max(0, self.length - len(decoded))))
        if self._extractor is None:
            if self.options.features == "waveform":
                return {"waveform": padded}
            return {"mel": log_mel(padded, self.options.sample_rate, self.options.mels)}
        features = self._extractor(
            padded, sampling_rate=self.options.sample_rate, return_tensors="np", **self._heard
        )
        return {
            name: np.asarray(values[0], dtype=np.float32)
            for name, values in features.items()
            if "mask" not in name
        }

    def blank(self) -> Features:
        return self.process(np.zeros(self.length, dtype=np.float32))

    def _read_mono(self, value: bytes) -> tuple[np.ndarray, int]:
        """libsndfile first: it is exact about what it knows; FFmpeg knows the rest, and videos."""
        import soundfile

        try:
            return _read_sound_file(value, self.options.max_seconds)
        except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError) as error:
            reason = str(getattr(error, "error_string", None) or error).partition("\n")[0]
            broken = BadInput(f"not a readable sound file: {reason}")
            if getattr(error, "code", None) not in _NOT_ITS_KIND:
                raise broken from None
        try:
            return _read_track(value, self.options.max_seconds)
        except Unreadable:
            raise broken from None
        except MissingInput as absent:
            raise absent if self.options.track_of is not None else BadInput(str(absent)) from None

    @cached_property
    def _heard(self) -> dict[str, Any]:
        """Whisper pads every clip to half a minute unless it is told otherwise; its encoder is cut to fit."""
        if not hasattr(self._extractor, "n_samples"):
            return {}
        return {"padding": "max_length", "max_length": whisper_positions(self.length) * WHISPER_STEP}

    @cached_property
    def _extractor(self) -> Any:
        encoder = self.options.encoder
        if not isinstance(encoder, HuggingFaceEncoder):
            return None
        extractor = feature_extractor(encoder.model)
        if extractor.sampling_rate != self.options.sample_rate:
            raise SpecError(
                f"sample_rate: {self.options.sample_rate}, but {encoder.model} hears {extractor.sampling_rate} per "
                f"second; write sample_rate: {extractor.sampling_rate}"
            )
        longest = getattr(extractor, "chunk_length", None)
        if longest and self.options.max_seconds > longest:
            raise SpecError(
                f"max_seconds: {self.options.max_seconds:g}, but {encoder.model} hears only {longest} seconds; "
                f"write max_seconds: {longest}"
            )
        return extractor


def _read_sound_file(value: bytes, seconds: float) -> tuple[np.ndarray, int]:
    """The first `seconds` of a sound file, its channels averaged, and its samples per second.

    Raises libsndfile's own errors for what it cannot read.
    """
    import soundfile

    with soundfile.SoundFile(io.BytesIO(value)) as file:
        rate = file.samplerate
        _check_rate(rate)
        blocks = file.blocks(_BLOCK, frames=int(seconds * rate) + 1, dtype="float32", always_2d=True)
        # In blocks: a small file can unpack to hundreds of channels.
        parts = [block.mean(axis=1) for block in blocks]
    return np.concatenate([np.empty(0, dtype=np.float32), *parts]), rate


def _read_track(value: bytes, seconds: float) -> tuple[np.ndarray, int]:
    """The same of the first sound track of a container. Raises MissingInput where it has none."""
    with opened(value, "sound file") as container:
        stream = _track(container)
        packet_clock(stream, seconds, "sound track")
    with opened(value, "sound file") as container:
        return _decode_track(container, _track(container), seconds)


def _track(container: Any) -> Any:
    if not container.streams.audio:
        raise MissingInput("the video has no sound track")
    stream = container.streams.audio[0]
    _check_rate(stream.rate)
    return stream


def _decode_track(container: Any, stream: Any, seconds: float) -> tuple[np.ndarray, int]:
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
    if not 0 < rate <= _FASTEST:
        raise BadInput(f"{rate} samples per second; at most {_FASTEST} are read")


def _refuse_cut_off(value: bytes) -> None:
    """A WAV tells its size; libsndfile just reads what is there. Recorders that stream write a placeholder."""
    if value[:4] == b"RIFF" and value[8:12] == b"WAVE":
        size = int.from_bytes(value[4:8], "little") + 8
        if len(value) < size * 0.99 and size < _PLACEHOLDER:
            raise BadInput(f"the sound file is cut off: {len(value)} of {size} bytes are there")


def _resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    # An odd rate such as 44101 would take a filter of a million taps; this is off by less than 0.01%.
    ratio = Fraction(wanted, rate).limit_denominator(_LARGEST_DIVISOR)
    return np.asarray(resample_poly(samples, ratio.numerator, ratio.denominator), dtype=np.float32)
