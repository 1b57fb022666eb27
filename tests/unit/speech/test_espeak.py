"""Phonemes by eSpeak NG."""

import sys

import pytest

from rayfuse.errors import ResourceError
from rayfuse.speech.espeak import EspeakPhonemizer


def test_phonemes_with_pauses() -> None:
    english = EspeakPhonemizer("en-us")
    assert english.phonemize("Hello, world. 21!") == "həlˈoʊ, wˈɜːld. twˈɛnti wˈʌn!"
    assert english.phonemize("...") == ""
    assert EspeakPhonemizer("de").phonemize("Guten Tag") == "ɡˈuːtən tˈɑːk"
    assert english.phonemize("hello") == "həlˈoʊ"  # voices do not disturb each other


def test_unknown_voices() -> None:
    with pytest.raises(ResourceError, match="has no voice xx-none"):
        EspeakPhonemizer("xx-none")


def test_a_missing_library_names_its_license(monkeypatch: pytest.MonkeyPatch) -> None:
    from rayfuse.speech import espeak

    espeak._load.cache_clear()
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ResourceError, match=r"pip install espeakng-loader, which brings eSpeak NG \(GPL-3\)"):
        EspeakPhonemizer("en-us")
