"""Phonemes by eSpeak NG, for voices in other languages than English, and for those who prefer it.

eSpeak NG is under GPL-3. It is no dependency of Rayfuse: whoever registers a voice with `--phonemizer espeak` installs
`espeakng-loader`, a package with the library and its data, on the machines that serve the voice.
"""

import ctypes
import os
import re
import threading
import unicodedata
from functools import cache

from rayfuse.errors import ResourceError

REMEDY = "pip install espeakng-loader, which brings eSpeak NG (GPL-3)"

_SYNCHRONOUS_WITHOUT_SOUND = 2
_DONT_EXIT = 0x8000
_MAX_DATA_PATH_LENGTH = 120  # eSpeak 1.52 copies the path into 160 bytes, and appends file names to it
_UTF8, _IPA = 1, 2
_PARTS = re.compile(r"[^.,;:!?]+|[.,;:!?]+")
_PAUSES = ".,;:!?"
_FLAG = re.compile(r"\([a-z-]+\)")
"""Change of the language, such as `(en)`, in front of a foreign word."""

_lock = threading.Lock()  # eSpeak has one state for a process


class EspeakPhonemizer:
    """Phonemes of texts by a voice of eSpeak NG. Safe for threads."""

    def __init__(self, voice: str) -> None:
        """Load eSpeak. Raises ResourceError if it is not installed, or has no such voice."""
        self._voice = voice.encode()
        self._library = _load()
        with _lock:
            if self._library.espeak_SetVoiceByName(self._voice) != 0:
                raise ResourceError(f"eSpeak NG has no voice {voice}; use a voice of a language that it has")

    def normalize(self, text: str) -> str:
        """Return the text as it is: eSpeak reads numbers and abbreviations itself."""
        return text

    def phonemize(self, sentence: str) -> str:
        """Return the phonemes of a sentence, with spaces between words and with its pauses."""
        spoken = ""
        for part in _PARTS.findall(sentence.replace("\0", " ")):
            if part[0] in _PAUSES:
                spoken += part[0] if spoken else ""
            elif part.strip():
                spoken += (" " if spoken else "") + self._clause(part.strip())
        return unicodedata.normalize("NFD", _FLAG.sub("", spoken)).strip()

    def _clause(self, text: str) -> str:
        found: list[str] = []
        with _lock:
            self._library.espeak_SetVoiceByName(self._voice)
            rest = ctypes.c_char_p(text.encode("utf-8", "replace"))
            while rest.value:
                phonemes = self._library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA)
                found.append((phonemes or b"").decode("utf-8", "replace"))
        return " ".join(filter(None, found))


@cache
def _load() -> ctypes.CDLL:
    try:
        import espeakng_loader
    except ImportError:
        raise ResourceError(f"phonemes by eSpeak NG need espeakng-loader: {REMEDY}") from None
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    data = espeakng_loader.get_data_path()
    if len(os.fsencode(data)) > _MAX_DATA_PATH_LENGTH:
        raise ResourceError(
            f"eSpeak NG cannot read its data in {data}: the path is longer than {_MAX_DATA_PATH_LENGTH} bytes; install "
            "espeakng-loader in an environment with a shorter path"
        )
    with _lock:
        rate = library.espeak_Initialize(_SYNCHRONOUS_WITHOUT_SOUND, 0, os.fsencode(data), _DONT_EXIT)
    if rate <= 0:
        raise ResourceError(f"eSpeak NG does not start with its data in {data}; {REMEDY}")
    return library
