"""Phonemes of English texts without eSpeak: a pronouncing dictionary, and a statistical model for other words.

The data are those of the package gruut-lang-en (MIT): the CMU Pronouncing Dictionary as IPA, with several
pronunciations of homographs by part of speech, and two conditional random fields (Lafferty et al., 2001), which tag the
parts of speech of a sentence and predict the phonemes of words that the dictionary lacks.
"""

import base64
import re
import sqlite3
import string
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from rayfuse.errors import ResourceError
from rayfuse.speech.english_text import spoken_text
from rayfuse.speech.espeak_inventory import espeak_word, link, reduce_word

REMEDY = "pip install 'rayfuse[speech]'"

_TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*'?|[.,;:!?]+")
_INNER_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_PAUSES = ".,;:!?"
_CONTEXT = 2
"""Words before and behind one that its part of speech depends on."""
_NEIGHBOURS = 3
"""Letters before and behind one that its phonemes depend on."""

_NO_PHONEME = "_"
_ROLE_PREFIX = "gruut:"

_SPELLED = frozenset({"AI", "AM", "IT", "PM", "US"})
"""Words in capitals that are spelled although the dictionary has a word of these letters."""

_MAX_SPELLED_WORDS = 3
"""Longer sentences in capitals are not abbreviations."""

_Features = dict[str, str | bool | int | float]


class _Token(NamedTuple):
    """A word or a pause of a sentence."""

    text: str
    role: str = ""
    """`letter` for a letter that is read by its name."""

    @property
    def is_pause(self) -> bool:
        return self.text[0] in _PAUSES


class EnglishPhonemizer:
    """Phonemes of English texts, in the inventory of eSpeak's US English. Safe for threads."""

    def __init__(self) -> None:
        """Open the dictionary and the models. Raises ResourceError if the extra `speech` is not installed."""
        try:
            import gruut_lang_en
            from pycrfsuite import Tagger
        except ImportError as error:
            raise ResourceError(f"phonemes of English texts need {error.name}: {REMEDY}") from None
        folder = Path(gruut_lang_en.__file__).parent
        self._lock = threading.Lock()  # neither the database nor the taggers may be used by two threads
        self._database = _open_dictionary(folder / "lexicon.db")
        self._letters, self._parts = Tagger(), Tagger()
        self._letters.open(str(folder / "g2p" / "model.crf"))
        self._parts.open(str(folder / "pos" / "model.crf"))
        self._pronunciations = lru_cache(20_000)(self._look_up)
        self._predicted = lru_cache(20_000)(self._predict)

    def normalize(self, text: str) -> str:
        """Return a text with numbers, abbreviations and symbols as words."""
        return spoken_text(text)

    def phonemize(self, sentence: str) -> str:
        """Return the phonemes of a normalized sentence, with spaces between words and with its pauses."""
        with self._lock:
            tokens = self._tokens(sentence)
            return _join(tokens, self._pronounce(tokens))

    def _tokens(self, sentence: str) -> list[_Token]:
        """Return the words and pauses of a sentence; words in capitals that the dictionary lacks are spelled."""
        found: list[_Token] = []
        if sentence.isupper() and len(sentence.split()) > _MAX_SPELLED_WORDS:
            sentence = sentence.lower()
        for text in _TOKEN.findall(_INNER_CAPITAL.sub(" ", sentence)):
            spelled = text.isupper() and (
                text in _SPELLED or (len(text) > 1 and not self._pronunciations(_key(text)))
            )
            found += (
                [_Token(letter, "letter") for letter in text if letter != "'"] if spelled else [_Token(text)]
            )
        return found

    def _pronounce(self, tokens: Sequence[_Token]) -> list[str]:
        """Return the phonemes of each token; a pause is itself."""
        tags: list[str] | None = None
        found: list[str] = []
        for place, token in enumerate(tokens):
            if token.is_pause:
                found.append(token.text[0])
                continue
            known = self._pronunciations(_key(token.text))
            if len(known) > 1 and tags is None:
                tags = self._parts.tag(_sentence_features([one.text for one in tokens]))
            if known:
                phonemes = _choose(known, token.role or (tags[place] if tags else ""))
            else:
                phonemes = self._predicted(_key(token.text))
            word = espeak_word(phonemes, token.text.lower())
            is_last = place + 1 == len(tokens) or tokens[place + 1].is_pause
            found.append(word if token.role else reduce_word(token.text.lower(), word, is_last))
        return found

    def _look_up(self, word: str) -> Mapping[str, tuple[str, ...]]:
        """Return the pronunciations of a word by the parts of speech that they belong to."""
        query = "SELECT role, phonemes FROM word_phonemes WHERE word = ? ORDER BY pron_order"
        found: dict[str, tuple[str, ...]] = {}
        for role, phonemes in self._database.execute(query, (word,)):
            found.setdefault(role.removeprefix(_ROLE_PREFIX), tuple(phonemes.split()))
        if not found and word.endswith("'"):
            return self._look_up(word[:-1])
        if not found and word.endswith("'s"):
            return {
                role: (*phonemes, _genitive(phonemes)) for role, phonemes in self._look_up(word[:-2]).items()
            }
        return found

    def _predict(self, word: str) -> tuple[str, ...]:
        letters = "".join(letter for letter in word if letter in string.ascii_lowercase)
        if not letters:
            return ()
        labels = self._letters.tag([_letter_features(letters, place) for place in range(len(letters))])
        joined = (base64.b64decode(label).decode() for label in labels)
        return tuple(phoneme for label in joined for phoneme in label.split("|") if phoneme != _NO_PHONEME)


def _open_dictionary(path: Path) -> sqlite3.Connection:
    """Return a copy of the dictionary in memory (15 MB) with an index of its words, which the file lacks."""
    copy = sqlite3.connect(":memory:", check_same_thread=False)
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as file:
        file.backup(copy)
    copy.execute("CREATE INDEX words ON word_phonemes (word)")
    return copy


def _key(token: str) -> str:
    """Return a word as the dictionary has it: in lower case, without accents."""
    decomposed = unicodedata.normalize("NFD", token.lower())
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def _choose(known: Mapping[str, tuple[str, ...]], tag: str) -> tuple[str, ...]:
    """Return the pronunciation of a part of speech (a tag of the Penn Treebank), else the first one."""
    for role in (tag, "VBD" if tag == "VBN" else "", tag[:2], ""):
        if role in known and (role or tag):
            return known[role]
    return next(iter(known.values()))


def _genitive(phonemes: Sequence[str]) -> str:
    last = phonemes[-1]
    if last in ("s", "z", "ʃ", "ʒ", "t͡ʃ", "d͡ʒ"):
        return "ɪz"
    return "s" if last in ("p", "t", "k", "f", "θ") else "z"


def _join(tokens: Sequence[_Token], words: Sequence[str]) -> str:
    """Join words by spaces, and pauses to the word before; "" for a sentence without words."""
    joined = ""
    for place, (token, word) in enumerate(zip(tokens, words, strict=True)):
        if token.is_pause:
            joined += word if joined and joined[-1] not in _PAUSES else ""
            continue
        if not word:
            continue
        following = words[place + 1] if place + 1 < len(words) else ""
        joined += (" " if joined else "") + link(word, following)
    return joined


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode("ascii")


def _letter_features(word: str, place: int) -> _Features:
    """Return the features of a letter for the model of phonemes."""
    features: _Features = {"bias": 1.0, "grapheme": _encode(word[place])}
    if place == 0:
        features["begin"] = True
    if place == len(word) - 1:
        features["end"] = True
    for distance in range(1, _NEIGHBOURS + 1):
        if place >= distance:
            features[f"grapheme-{distance}"] = _encode(word[place - distance])
        if place + distance < len(word):
            features[f"grapheme+{distance}"] = _encode(word[place + distance])
    return features


def _sentence_features(tokens: Sequence[str]) -> list[_Features]:
    """Return the features of each word for the model of parts of speech."""
    found = []
    for place in range(len(tokens)):
        features = _word_features(tokens[place], "")
        features |= {"BOS": True} if place == 0 else {}
        features |= {"EOS": True} if place == len(tokens) - 1 else {}
        for distance in range(1, _CONTEXT + 1):
            if place >= distance:
                features |= _word_features(tokens[place - distance], f"-{distance}:")
            if place + distance < len(tokens):
                features |= _word_features(tokens[place + distance], f"+{distance}:")
        found.append(features)
    return found


def _word_features(word: str, prefix: str) -> _Features:
    features: dict[str, Any] = {
        "bias": 1.0,
        "word": _encode(word),
        "len(word)": len(word),
        "word.ispunctuation": word in string.punctuation,
        "word.isdigit()": word.isdigit(),
        **{f"word[:{length}]": word[:length] for length in (2, 3)},
        **{f"word[-{length}:]": word[-length:] for length in (2, 3)},
    }
    return {prefix + name: value for name, value in features.items()}
