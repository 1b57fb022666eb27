"""Spoken digits of the demo, synthesized by eSpeak NG (package espeakng-loader) in many English voices.

eSpeak has state between words (flutter, noise) that it never resets, and takes noise from the C library's `rand`, which
it seeds with the clock. A session therefore loads a private copy of the library and seeds it: the same list of words then
gives the same samples every time, without affecting other users of eSpeak in this process.
"""

import ctypes
import io
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import gcd
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
from scipy.signal import firwin, resample_poly

from rayfuse.demo.questions import Split
from rayfuse.errors import ResourceError

SAMPLE_RATE = 8000
MAX_SECONDS = 1.0
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Samples = npt.NDArray[np.int16]

# eSpeak 1.52 copies the data path into 160 bytes, and appends file names to it in buffers of 190.
_MAX_DATA_PATH_LENGTH = 120
_REMEDY = "pip install --force-reinstall 'rayfuse[demo]'"

_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_RATE, _PITCH = 1, 3
_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

_session_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class VoiceStyle:
    """Voice, speed and pitch of a spoken word; as a string a file name such as `en-us-f2-170-50`."""

    voice: str
    """eSpeak voice, `accent+variant`."""
    speed: int
    """Words per minute."""
    pitch: int
    """Pitch, 0 to 99."""

    def __str__(self) -> str:
        return f"{self.voice.replace('+', '-')}-{self.speed}-{self.pitch}"


@dataclass(frozen=True, slots=True)
class Clip:
    """A spoken digit."""

    digit: int
    """The digit, 0 to 9."""
    style: VoiceStyle
    """Style of the voice."""
    samples: Samples
    """Mono int16 [samples] at SAMPLE_RATE, at most MAX_SECONDS, without silence at the ends."""


_ACCENTS = (
    "en-us",
    "en",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
    "en-us-nyc",
)
_VARIANTS: dict[Split, tuple[str, ...]] = {
    "train": (
        *("f1", "m1", "Alicia", "Andy", "f2", "m3", "robert", "Mike", "steph", "m4", "f5", "Denis"),
        *("belinda", "m7", "Annie", "Alex", "f3", "m8", "anika", "edward", "linda", "m5", "Andrea"),
        *("Mario", "grandma", "quincy", "shelby", "travis"),
    ),
    "test": ("f4", "m2", "aunty", "m6", "steph3", "max", "victor", "Gene"),
}
_SPEED_PITCH: dict[Split, tuple[tuple[int, int], ...]] = {
    "train": ((125, 50), (145, 35), (165, 65), (190, 45), (215, 55)),
    "test": ((135, 40), (155, 60), (178, 50), (202, 42)),
}
_STYLES_PER_VOICE: dict[Split, int] = {"train": 3, "test": 2}


def voice_styles(split: Split) -> tuple[VoiceStyle, ...]:
    """Return the voice styles of a split: 84 for training and 16 for testing.

    The splits share no voice and no pair of speed and pitch.
    """
    manners, each = _SPEED_PITCH[split], _STYLES_PER_VOICE[split]
    return tuple(
        VoiceStyle(
            f"{_ACCENTS[rank % len(_ACCENTS)]}+{variant}", *manners[(rank * each + turn) % len(manners)]
        )
        for rank, variant in enumerate(_VARIANTS[split])
        for turn in range(each)
    )


def synthesize_digits(styles: Sequence[VoiceStyle]) -> list[Clip]:
    """Synthesize every digit in every style, in order; about a millisecond per clip.

    The same styles in the same order give the same samples. Raises ResourceError if eSpeak is missing, does not start or
    lacks a voice.
    """
    return list(_clips(styles))


def wav_bytes(samples: Samples) -> bytes:
    """Encode mono int16 [samples] at SAMPLE_RATE as a WAV file."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def trim_silence(samples: Samples, *, floor: float = 0.003, margin: int = 80) -> Samples:
    """Cut the ends that stay below `floor` of the peak, except for `margin` samples.

    The result is empty if all samples are zero.
    """
    loudness = np.abs(samples.astype(np.int32))
    audible = np.flatnonzero(loudness > floor * loudness.max(initial=0))
    if audible.size == 0:
        return samples[:0]
    return samples[max(0, int(audible[0]) - margin) : int(audible[-1]) + 1 + margin]


def _clips(styles: Iterable[VoiceStyle]) -> Iterator[Clip]:
    with _session() as espeak:
        for style in styles:
            espeak.set_voice(style)
            for digit, word in enumerate(WORDS):
                samples = _postprocess(espeak.synthesize(word), espeak.sample_rate, f"{word} by {style}")
                yield Clip(digit, style, samples)


def _postprocess(raw: Samples, rate: int, what: str) -> Samples:
    """Resample eSpeak's output, trim silence and cut it at MAX_SECONDS."""
    if raw.size == 0 or not raw.any():
        raise ResourceError(f"eSpeak's output for '{what}' is silent: {_REMEDY}")
    common = gcd(SAMPLE_RATE, rate)
    up, down = SAMPLE_RATE // common, rate // common
    wave = resample_poly(raw.astype(np.float64), up, down, window=_low_pass(max(up, down)))
    wave = np.clip(np.rint(wave), -32768, 32767).astype(np.int16)
    return trim_silence(wave)[: int(MAX_SECONDS * SAMPLE_RATE)]


@cache
def _low_pass(ratio: int) -> npt.NDArray[np.float64]:
    """Return resample_poly's filter, cached: designing it for each clip takes half of the clip's time."""
    taps: npt.NDArray[np.float64] = firwin(20 * ratio + 1, 1 / ratio, window=("kaiser", 5.0))
    return taps


class _Espeak:
    """A running copy of the library; not thread-safe."""

    def __init__(self, library: ctypes.CDLL, data: Path) -> None:
        self._library = library
        self._data = data
        self._chunks: list[bytes] = []
        self._callback = _SynthCallback(self._collect)  # eSpeak has the pointer, so this must stay alive
        library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
            *(ctypes.c_void_p, ctypes.c_void_p),
        ]
        # Without DONT_EXIT an invalid data path exits the process.
        self.sample_rate = int(library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _DONT_EXIT))
        if self.sample_rate <= 0:
            raise ResourceError(f"eSpeak does not start with its data in {data}: {_REMEDY}")
        library.espeak_SetSynthCallback(self._callback)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))

    def set_voice(self, style: VoiceStyle) -> None:
        """Set the style of the next words."""
        # eSpeak reports an unknown accent, but ignores an unknown variant.
        _, _, variant = style.voice.partition("+")
        known = not variant or (self._data / "voices" / "!v" / variant).is_file()
        if not known or self._library.espeak_SetVoiceByName(style.voice.encode()) != 0:
            raise ResourceError(f"eSpeak has no voice '{style.voice}': {_REMEDY}")
        self._library.espeak_SetParameter(_RATE, style.speed, 0)
        self._library.espeak_SetParameter(_PITCH, style.pitch, 0)

    def synthesize(self, text: str) -> Samples:
        """Synthesize a text as mono int16 [samples] at `sample_rate`."""
        self._chunks.clear()
        encoded = text.encode()
        status = self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _CHARS_UTF8, None, None)
        if status != 0:
            raise ResourceError(f"eSpeak failed for '{text}' with status {status}: {_REMEDY}")
        return np.frombuffer(b"".join(self._chunks), dtype=np.int16)

    def stop(self) -> None:
        self._library.espeak_Terminate()

    def _collect(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int | None) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, count * 2))
        return 0


@contextmanager
def _session() -> Iterator[_Espeak]:
    """Start eSpeak; one at a time, because all copies share the C library's random numbers."""
    library, data = _installed()
    with _session_lock, tempfile.TemporaryDirectory(prefix="rayfuse-") as folder:
        espeak = _Espeak(_load_copy(library, Path(folder)), short_path(data, Path(folder)))
        try:
            yield espeak
        finally:
            espeak.stop()


def _installed() -> tuple[Path, Path]:
    """Return the packaged library and the folder of its data."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise ResourceError(
            "the demo requires the package espeakng-loader, which is not installed: pip install 'rayfuse[demo]'"
        ) from error
    try:
        library, data = Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())
    except RuntimeError as error:
        raise ResourceError(f"the package espeakng-loader is incomplete: {error}: {_REMEDY}") from error
    for path in (library, data):
        if not path.exists():
            raise ResourceError(f"the package espeakng-loader is incomplete: it lacks {path}: {_REMEDY}")
    return library, data


def _load_copy(library: Path, folder: Path) -> ctypes.CDLL:
    copy = shutil.copy(library, folder)
    try:
        return ctypes.CDLL(str(copy))
    except OSError as error:
        raise ResourceError(f"eSpeak's library cannot be loaded: {error}: {_REMEDY}") from error


def short_path(data: Path, folder: Path) -> Path:
    """Return a path to `data` that fits eSpeak's buffers: itself, or a link in `folder`."""
    if len(os.fsencode(data)) <= _MAX_DATA_PATH_LENGTH:
        return data
    short = folder / data.name
    if len(os.fsencode(short)) > _MAX_DATA_PATH_LENGTH:
        raise ResourceError(
            f"eSpeak's data path must have at most {_MAX_DATA_PATH_LENGTH} bytes, and both {data} and the temporary "
            f"folder {folder} are longer; set TMPDIR to a short path such as /tmp"
        )
    try:
        short.symlink_to(data, target_is_directory=True)
    except OSError:  # on Windows only some users may create links
        shutil.copytree(data, short)
    return short
