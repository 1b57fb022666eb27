"""Phonemes of a dictionary of US English in the inventory that eSpeak NG writes, which Piper's voices have learned.

The two differ in the length of vowels, in the reduced vowels ɐ, ᵻ and ɚ, in the flap ɾ and the glottal stop before a
syllabic n, and in the stress of function words. Affricates are two letters without a tie.
"""

from collections.abc import Sequence

_STRESSES = "ˈˌ"
_VOWELS = frozenset("aɑæɐʌəɚɛɜeɪiᵻɔoʊu")
_PLAIN_VOWELS = frozenset(
    {"ɑ", "æ", "ʌ", "ə", "ɚ", "ɛ", "ɪ", "i", "ɔ", "ʊ", "u", "eɪ", "aɪ", "aʊ", "oʊ", "ɔɪ"}
)
_LONG = {"ɑ": "ɑː", "ɔ": "ɔː", "u": "uː"}

_WEAK_FORMS = {
    "a": "ɐ",
    "an": "ɐn",
    "and": "ænd",
    "are": "ɑːɹ",
    "as": "æz",
    "can": "kæn",
    "for": "fɔːɹ",
    "from": "fɹʌm",
    "into": "ˌɪntʊ",
    "of": "ʌv",
    "on": "ˌɔn",
    "or": "ɔːɹ",
    "to": "tə",
    "was": "wʌz",
    "what": "wʌt",
    "your": "jʊɹ",
}
"""Function words before another word."""
_UNSTRESSED = frozenset(
    {
        "am", "at", "be", "could", "has", "have", "he", "her", "i", "if", "in", "is", "it", "my", "she",
        "than", "that", "the", "their", "there", "they", "this", "were", "we", "when", "will", "with", "would",
        "you", "i'm", "it's", "that's", "he's", "she's", "you're", "we're", "they're", "i'll", "i've", "you've",
    }
)  # fmt: skip
_SECONDARY = frozenset(
    {
        "about", "any", "because", "been", "but", "him", "his", "how", "me", "might", "not", "our",
        "should", "so", "some", "them", "us", "where", "which", "who", "why",
    }
)  # fmt: skip
"""Function words with a secondary stress instead of a primary one."""


def espeak_word(phonemes: Sequence[str], word: str) -> str:
    """Return a word in eSpeak's inventory.

    phonemes: as in the dictionary, each with its stress mark, if any, before it; word: the spelling, in lower case.
    """
    stresses = [phoneme[0] if phoneme[0] in _STRESSES else "" for phoneme in phonemes]
    plain = [phoneme.lstrip(_STRESSES) for phoneme in phonemes]
    if word.endswith(("ed", "es")) and plain[-2:] in (["ɪ", "d"], ["ɪ", "z"]) and not stresses[-2]:
        plain[-2] = "ᵻ"
    return "".join(stress + _espeak_phoneme(plain, stresses, place) for place, stress in enumerate(stresses))


def _espeak_phoneme(plain: Sequence[str], stresses: Sequence[str], place: int) -> str:
    phoneme, stress = plain[place], stresses[place]
    following = plain[place + 1] if place + 1 < len(plain) else ""
    if phoneme == "t" and place:
        return _t(plain, stresses, place)
    if phoneme == "ə":
        if place == 0 and following:
            return "ɐ"
        return "" if _is_syllabic_n(plain, stresses, place) else "ə"
    if phoneme == "n" and place and _is_syllabic_n(plain, stresses, place - 1):
        return "n̩"
    if phoneme == "i":
        return "iː" if stress else "i"
    if phoneme == "ɚ":
        return ("ɜː" if stress else "ɚ") + ("ɹ" if following in _PLAIN_VOWELS else "")
    return _LONG.get(phoneme, phoneme.replace("\u0361", ""))


def _t(plain: Sequence[str], stresses: Sequence[str], place: int) -> str:
    """Return a t between vowels, before an unstressed one, as a flap, and before a syllabic n as a glottal stop."""
    before, following = plain[place - 1], plain[place + 1] if place + 1 < len(plain) else ""
    after_vowel = before in _PLAIN_VOWELS or before == "ᵻ"
    if _is_syllabic_n(plain, stresses, place + 1):
        return "ʔ"
    if following in (*_PLAIN_VOWELS, "ᵻ") and not stresses[place + 1] and (after_vowel or before == "ɹ"):
        return "ɾ"
    return "t"


def _is_syllabic_n(plain: Sequence[str], stresses: Sequence[str], place: int) -> bool:
    """Return whether the vowel at a place is the ə of a syllabic n: between a t behind a vowel and an n."""
    return (
        2 <= place < len(plain) - 1
        and plain[place] == "ə"
        and not stresses[place]
        and plain[place + 1] == "n"
        and plain[place - 1] == "t"
        and plain[place - 2] in _PLAIN_VOWELS
    )


def reduce_word(word: str, phonemes: str, is_last: bool) -> str:
    """Return the phonemes of a function word as it is spoken before another word; other words are not changed.

    word: in lower case; is_last: True before a pause.
    """
    if is_last and word not in _UNSTRESSED:
        return phonemes
    if word in _WEAK_FORMS:
        return _WEAK_FORMS[word]
    if word in _UNSTRESSED:
        return phonemes.translate(dict.fromkeys(map(ord, _STRESSES)))
    return phonemes.replace("ˈ", "ˌ") if word in _SECONDARY else phonemes


def link(word: str, following: str) -> str:
    """Return the phonemes of a word before another one: an r before a vowel, and the form of "the"."""
    before_vowel = following.lstrip(_STRESSES)[:1] in _VOWELS if following else False
    if word == "ðə" and before_vowel:
        return "ðɪ"
    return f"{word}ɹ" if before_vowel and word.endswith(("ɚ", "ɜː")) else word
