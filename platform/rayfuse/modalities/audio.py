"""Sound: anything that libsndfile reads, as one channel at one rate."""

import io
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from rayfuse.errors import BadInput, SpecError
from rayfuse.modalities.base import Features, Modality
from rayfuse.modalities.pretrained import feature_extractor
from rayfuse.spec.encoders import HuggingFaceEncoder
from rayfuse.spec.inputs import AudioInput

_FASTEST = 1_000_000  # samples per second
_LOUDEST = 1e6  # sound lies between -1 and 1; whole numbers saved as floats go to 32768
_BLOCK = 65_536
_LARGEST_DIVISOR = 10_000
_PLACEHOLDER = 0x7FFF0000


class AudioModality(Modality):
    """Features `waveform`: float32 (sample_rate × max_seconds,) for a conv encoder, else its extractor's."""

    media_types = ("audio/", "application/octet-stream")

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
        mono, rate = _read_mono(value, self.options.max_seconds)
        if not len(mono):
            raise BadInput("the sound file has zero length")
        if not np.abs(mono).max() <= _LOUDEST:
            raise BadInput("the sound file holds samples that are no finite numbers, or far too large ones")
        return _resample(mono, rate, self.options.sample_rate)[: self.length]

    def process(self, decoded: np.ndarray) -> Features:
        if self._extractor is None:
            return {"waveform": np.pad(decoded, (0, self.length - len(decoded)))}
        padded = np.pad(decoded, (0, max(0, self.length - len(decoded))))
        features = self._extractor(padded, sampling_rate=self.options.sample_rate, return_tensors="np")
        return {
            name: np.asarray(values[0], dtype=np.float32)
            for name, values in features.items()
            if "mask" not in name
        }

    def blank(self) -> Features:
        return self.process(np.zeros(self.length, dtype=np.float32))

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


def _read_mono(value: bytes, seconds: float) -> tuple[np.ndarray, int]:
    """The first `seconds` of a sound file, its channels averaged, and its samples per second."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(value)) as file:
            rate = file.samplerate
            if rate > _FASTEST:
                raise BadInput(f"{rate} samples per second; at most {_FASTEST} are read")
            blocks = file.blocks(_BLOCK, frames=int(seconds * rate) + 1, dtype="float32", always_2d=True)
            # In blocks: a small file can unpack to hundreds of channels.
            parts = [block.mean(axis=1) for block in blocks]
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError) as error:
        reason = str(getattr(error, "error_string", None) or error).partition("\n")[0]
        raise BadInput(f"not a readable sound file: {reason}") from None
    return np.concatenate([np.empty(0, dtype=np.float32), *parts]), rate


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
