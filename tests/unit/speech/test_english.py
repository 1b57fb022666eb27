"""Phonemes of English, in the inventory of eSpeak."""

import difflib
from concurrent.futures import ThreadPoolExecutor

import pytest

from rayfuse.speech.english import EnglishPhonemizer
from rayfuse.speech.espeak import EspeakPhonemizer


@pytest.fixture(scope="module")
def english() -> EnglishPhonemizer:
    return EnglishPhonemizer()


@pytest.mark.parametrize(
    ("sentence", "phonemes"),
    [
        ("The next train leaves at ten.", "ðə nˈɛkst tɹˈeɪn lˈiːvz æt tˈɛn."),
        ("Water, little city, button!", "wˈɔːɾɚ, lˈɪɾəl sˈɪɾi, bˈʌʔn̩!"),  # flaps, a glottal stop, a syllabic n
        ("about the apple", "ɐbˌaʊt ðɪ ˈæpəl"),  # "the" before a vowel
        ("water and fire in winter", "wˈɔːɾɚɹ ænd fˈaɪɚɹ ɪn wˈɪntɚ"),  # a linking r
        ("nurse church judge", "nˈɜːs tʃˈɜːtʃ dʒˈʌdʒ"),
        ("wanted boxes", "wˈɔːntᵻd bˈɑːksᵻz"),
        ("He read it. I will read it.", "hiː ɹˈɛd ɪt. aɪ wɪl ɹˈiːd ɪt."),  # by the part of speech
        ("the record", "ðə ɹˈɛkɚd"),
        ("to record", "tə ɹɪkˈɔːɹd"),
        ("GPU", "dʒˈiː pˈiː jˈuː"),
        ("the US and us", "ðə jˈuː ˈɛs ænd ˈʌs"),
        ("IT IS LATE IN THE US", "ɪt ɪz lˈeɪt ɪn ðɪ ˈʌs"),  # not abbreviations
        ("OpenAI", "ˈoʊpən ˈeɪ ˈaɪ"),
        ("café", "kæfˈeɪ"),
        ("the zorbs' blixen's", "ðə zˈɔːɹbz blˈɪksənz"),
    ],
)  # fmt: skip
def test_phonemes_of_sentences(english: EnglishPhonemizer, sentence: str, phonemes: str) -> None:
    assert english.phonemize(sentence) == phonemes


def test_texts_without_words_have_no_phonemes(english: EnglishPhonemizer) -> None:
    for text in ("", "...", "  ", "👍", "(-)", "12"):
        assert english.phonemize(text) == "", text


def test_other_words_are_predicted(english: EnglishPhonemizer) -> None:
    assert english.phonemize("rayfuse") == "ɹˈeɪfjˈuːs"
    assert english.phonemize("Москва and λ") == "ænd"  # letters that the model does not know


def test_sentences_are_close_to_those_of_espeak(english: EnglishPhonemizer) -> None:
    espeak = EspeakPhonemizer("en-us")
    sentences = [
        "I still have not received my new card, I ordered over a week ago.",
        "Can you find me a round trip flight out of the city on Friday?",
        "She sells sea shells, and he wanted to know which of them were better.",
    ]
    for sentence in sentences:
        ours, theirs = english.phonemize(sentence), espeak.phonemize(sentence)
        assert difflib.SequenceMatcher(None, ours, theirs, autojunk=False).ratio() > 0.93, (ours, theirs)


def test_threads_get_what_one_gets(english: EnglishPhonemizer) -> None:
    sentences = [f"He read record {word} of the unblinking zorblings." for word in ("one", "two", "ten")] * 20
    expected = [EnglishPhonemizer().phonemize(sentence) for sentence in sentences[:3]] * 20
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(EnglishPhonemizer().phonemize, sentences)) == expected
