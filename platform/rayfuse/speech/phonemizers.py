"""The ways from a text to the symbols that a voice reads."""

import unicodedata
from typing import Literal, Protocol

from rayfuse.errors import SpecError
from rayfuse.speech.piper_config import PiperConfig

PhonemizerName = Literal["dictionary", "espeak", "characters"]
PHONEMIZERS: tuple[PhonemizerName, ...] = ("dictionary", "espeak", "characters")
"""`dictionary`: English, of the extra `speech`; `espeak`: eSpeak NG; `characters`: for voices that read characters."""


class Phonemizer(Protocol):
    """A way from a text to symbols. Safe for threads."""

    def normalize(self, text: str) -> str:
        """Return a text in which all that is spoken is written as words."""
        ...

    def phonemize(self, sentence: str) -> str:
        """Return the symbols of a normalized sentence; "" if nothing in it can be spoken."""
        ...


class _Characters:
    """The characters of a text in lower case, for voices that read characters."""

    def normalize(self, text: str) -> str:
        return text

    def phonemize(self, sentence: str) -> str:
        characters = unicodedata.normalize("NFD", sentence.lower())
        return characters if any(character.isalpha() for character in characters) else ""


def choose_phonemizer(config: PiperConfig, wanted: str | None = None) -> PhonemizerName:
    """Return the phonemizer of a voice: `wanted`, else the only one that needs no eSpeak.

    Raises SpecError if the voice cannot use it.
    """
    language = config.language_code
    is_english = language.lower().split("-")[0] == "en"
    if config.phoneme_type == "text":
        possible: list[PhonemizerName] = ["characters"]
    else:
        possible = ["dictionary", "espeak"] if is_english else ["espeak"]
    if wanted is None:
        if possible == ["espeak"]:
            raise SpecError(
                f"language {language}: the dictionary of the extra `speech` is English; for other languages pass "
                "--phonemizer espeak, which needs eSpeak NG (GPL-3): pip install espeakng-loader"
            )
        return possible[0]
    for name in possible:
        if name == wanted:
            return name
    raise SpecError(f"phonemizer {wanted}: not for this voice ({language}); use {' or '.join(possible)}")


def build_phonemizer(name: PhonemizerName, config: PiperConfig) -> Phonemizer:
    """Build a phonemizer. Raises ResourceError if its package is not installed."""
    if name == "characters":
        return _Characters()
    if name == "espeak":
        from rayfuse.speech.espeak import EspeakPhonemizer

        assert config.espeak is not None
        return EspeakPhonemizer(config.espeak.voice)
    from rayfuse.speech.english import EnglishPhonemizer

    return EnglishPhonemizer()
