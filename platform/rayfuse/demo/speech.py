"""Spoken digits of the demo: eSpeak NG, as packaged by espeakng-loader, says them in many English voices.

eSpeak keeps state between words (flutter, noise) that it never resets, and takes noise from the C library's
`rand`, which it seeds with the clock. So a session loads a private copy of the library and seeds it: the same
list of words then gives the same samples every time, and whatever else uses eSpeak in this process is left
alone.
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
_LONGEST_DATA_PATH = 120
_REMEDY = "Reinstall it with: pip install --force-reinstall 'rayfuse[demo]'"

_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_RATE, _PITCH = 1, 3
_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

_session_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a word is said: an eSpeak voice `accent+variant`, words per minute, and pitch (0 to 99)."""

    voice: str
    speed: int
    pitch: int

    def __str__(self) -> str:
        """A name that suits files and URLs, such as `en-us-f2-170-50`."""
        return f"{self.voice.replace('+', '-')}-{self.speed}-{self.pitch}"


@dataclass(frozen=True, slots=True)
class Clip:
    """One spoken digit: mono int16 [samples] at SAMPLE_RATE, at most MAX_SECONDS, without silent ends."""

    digit: int
    delivery: Delivery
    samples: Samples


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
_MANNERS: dict[Split, tuple[tuple[int, int], ...]] = {
    "train": ((125, 50), (145, 35), (165, 65), (190, 45), (215, 55)),
    "test": ((135, 40), (155, 60), (178, 50), (202, 42)),
}
_MANNERS_PER_VOICE: dict[Split, int] = {"train": 3, "test": 2}


def deliveries(split: Split) -> tuple[Delivery, ...]:
    """The deliveries of a split: 84 to train and 16 to test.

    No voice, no pair of speed and pitch, and so no delivery of one split is in the other.
    """
    manners, each = _MANNERS[split], _MANNERS_PER_VOICE[split]
    return tuple(
        Delivery(f"{_ACCENTS[rank % len(_ACCENTS)]}+{variant}", *manners[(rank * each + turn) % len(manners)])
        for rank, variant in enumerate(_VARIANTS[split])
        for turn in range(each)
    )


def speak_digits(spoken: Sequence[Delivery]) -> list[Clip]:
    """Every digit in every delivery, ten clips per delivery, in order; about a millisecond per clip.

    The same deliveries in the same order give the same samples. Raises ResourceError if eSpeak is missing,
    cannot start or lacks a voice.
    """
    return list(_clips(spoken))


def wav_bytes(samples: Samples) -> bytes:
    """Mono int16 [samples] at SAMPLE_RATE as a WAV file."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def trim(samples: Samples, *, floor: float = 0.003, margin: int = 80) -> Samples:
    """Without the ends that stay below `floor` of the peak, keeping `margin` samples beyond them.

    Empty if there is no sound at all.
    """
    loudness = np.abs(samples.astype(np.int32))
    audible = np.flatnonzero(loudness > floor * loudness.max(initial=0))
    if audible.size == 0:
        return samples[:0]
    return samples[max(0, int(audible[0]) - margin) : int(audible[-1]) + 1 + margin]


def _clips(spoken: Iterable[Delivery]) -> Iterator[Clip]:
    with _session() as espeak:
        for delivery in spoken:
            espeak.take(delivery)
            for digit, word in enumerate(WORDS):
                samples = _finish(espeak.say(word), espeak.sample_rate, f"{word} by {delivery}")
                yield Clip(digit, delivery, samples)


def _finish(raw: Samples, rate: int, what: str) -> Samples:
    """eSpeak's samples as a clip's: resampled, trimmed, and cut at MAX_SECONDS."""
    if raw.size == 0 or not raw.any():
        raise ResourceError(f"eSpeak made no sound for '{what}'. {_REMEDY}")
    common = gcd(SAMPLE_RATE, rate)
    up, down = SAMPLE_RATE // common, rate // common
    wave = resample_poly(raw.astype(np.float64), up, down, window=_low_pass(max(up, down)))
    wave = np.clip(np.rint(wave), -32768, 32767).astype(np.int16)
    return trim(wave)[: int(MAX_SECONDS * SAMPLE_RATE)]


@cache
def _low_pass(ratio: int) -> npt.NDArray[np.float64]:
    """The filter that resample_poly would design again for each clip, at half of the clip's time."""
    taps: npt.NDArray[np.float64] = firwin(20 * ratio + 1, 1 / ratio, window=("kaiser", 5.0))
    return taps


class _Espeak:
    """A started copy of the library. Not for use from several threads."""

    def __init__(self, library: ctypes.CDLL, data: Path) -> None:
        self._library = library
        self._data = data
        self._chunks: list[bytes] = []
        self._callback = _SynthCallback(self._collect)  # eSpeak holds the pointer, so this must stay alive
        library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
            *(ctypes.c_void_p, ctypes.c_void_p),
        ]
        # Without DONT_EXIT a data path that does not suit eSpeak ends the whole process.
        self.sample_rate = int(library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _DONT_EXIT))
        if self.sample_rate <= 0:
            raise ResourceError(f"eSpeak cannot start with its data in {data}. {_REMEDY}")
        library.espeak_SetSynthCallback(self._callback)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))

    def take(self, delivery: Delivery) -> None:
        """Speak the next words in this delivery."""
        # eSpeak reports an unknown accent, but says everything plainly for an unknown variant.
        _, _, variant = delivery.voice.partition("+")
        known = not variant or (self._data / "voices" / "!v" / variant).is_file()
        if not known or self._library.espeak_SetVoiceByName(delivery.voice.encode()) != 0:
            raise ResourceError(f"This eSpeak has no voice '{delivery.voice}'. {_REMEDY}")
        self._library.espeak_SetParameter(_RATE, delivery.speed, 0)
        self._library.espeak_SetParameter(_PITCH, delivery.pitch, 0)

    def say(self, text: str) -> Samples:
        """One text as mono int16 [samples] at `sample_rate`."""
        self._chunks.clear()
        encoded = text.encode()
        status = self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _CHARS_UTF8, None, None)
        if status != 0:
            raise ResourceError(f"eSpeak failed on '{text}' with status {status}. {_REMEDY}")
        return np.frombuffer(b"".join(self._chunks), dtype=np.int16)

    def stop(self) -> None:
        self._library.espeak_Terminate()

    def _collect(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int | None) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, count * 2))
        return 0


@contextmanager
def _session() -> Iterator[_Espeak]:
    """A fresh eSpeak, one at a time because all copies share the C library's random numbers."""
    library, data = _installed()
    with _session_lock, tempfile.TemporaryDirectory(prefix="rayfuse-") as folder:
        espeak = _Espeak(_load_copy(library, Path(folder)), _short_path(data, Path(folder)))
        try:
            yield espeak
        finally:
            espeak.stop()


def _installed() -> tuple[Path, Path]:
    """The packaged library and the folder of its data."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise ResourceError(
            "The demo's spoken digits are made with the package espeakng-loader, which is not installed. "
            "Install it with: pip install 'rayfuse[demo]'"
        ) from error
    try:
        library, data = Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())
    except RuntimeError as error:
        raise ResourceError(f"The package espeakng-loader is incomplete: {error}. {_REMEDY}") from error
    for path in (library, data):
        if not path.exists():
            raise ResourceError(f"The package espeakng-loader is incomplete: it lacks {path}. {_REMEDY}")
    return library, data


def _load_copy(library: Path, folder: Path) -> ctypes.CDLL:
    copy = shutil.copy(library, folder)
    try:
        return ctypes.CDLL(str(copy))
    except OSError as error:
        raise ResourceError(f"eSpeak's library cannot be loaded: {error}. {_REMEDY}") from error


def _short_path(data: Path, folder: Path) -> Path:
    """A path to `data` that fits eSpeak's buffers: itself, or a link in `folder`."""
    if len(os.fsencode(data)) <= _LONGEST_DATA_PATH:
        return data
    short = folder / data.name
    if len(os.fsencode(short)) > _LONGEST_DATA_PATH:
        raise ResourceError(
            f"eSpeak takes data paths of at most {_LONGEST_DATA_PATH} bytes; both {data} and the temporary "
            f"folder {folder} are longer. Set TMPDIR to a short path such as /tmp"
        )
    try:
        short.symlink_to(data, target_is_directory=True)
    except OSError:  # Windows lets only some users make links
        shutil.copytree(data, short)
    return short
