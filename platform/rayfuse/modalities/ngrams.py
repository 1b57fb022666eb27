"""N-grams of texts with TF-IDF weights, and the vocabulary of the training rows."""

import math
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from rayfuse.errors import DataError
from rayfuse.modalities.vocabulary import build_vocabulary
from rayfuse.spec.encoders import NGramsEncoderConfig

PADDING, FIRST_KNOWN = 0, 1
"""Codes of n-grams; known ones have the codes from `FIRST_KNOWN`."""

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_MAX_COUNTED = 1_000_000
_CHARS_PER_WORD, _MIN_CHARS = 100, 10_000
_ASSUMED_WORD_LENGTH = 6


def iter_ngrams(options: NGramsEncoderConfig, text: str, max_words: int) -> Iterator[str]:
    """Yield the n-grams of the first `max_words` words of a text, in lower case, each as often as it occurs.

    Of a text with more than 10,000 characters and 100 per word of `max_words`, only these are read.

    Those of words are joined by a space. Those of characters are inside one word, which is padded with a space at both
    ends as scikit-learn's `char_wb`, and begin with a tab.
    """
    read = text[: _MIN_CHARS + _CHARS_PER_WORD * max_words].lower()
    words = [match.group() for match, _ in zip(_WORD.finditer(read), range(max_words), strict=False)]
    for size in range(1, options.words + 1):
        for first in range(len(words) - size + 1):
            yield " ".join(words[first : first + size])
    if options.characters is None:
        return
    shortest, longest = options.characters
    for word in words:
        padded = f" {word} "
        for size in range(shortest, longest + 1):
            for first in range(len(padded) - size + 1):
                yield "\t" + padded[first : first + size]


class NGramVectorizer:
    """TF-IDF weights of the n-grams of a text, by scikit-learn's definition.

    The weight of an n-gram is tf × idf, divided by the Euclidean norm of the text's weights: tf is its count, or
    1 + log(count) with `sublinear_tf`; idf is log((1 + n) / (1 + df)) + 1 for df of n training rows.
    """

    def __init__(self, options: NGramsEncoderConfig, max_words: int) -> None:
        self._options, self._max_words = options, max_words
        self._codes = {ngram: code for code, ngram in enumerate(options.vocabulary or (), FIRST_KNOWN)}
        self._idf = np.array([0.0, *(options.idf or ())])

    def transform(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of the known n-grams of a text, int64 (n-grams,), and their weights, float32 (n-grams,).

        A text without known n-grams has one of padding, with weight 0.
        """
        counts: Counter[int] = Counter()
        for ngram in iter_ngrams(self._options, text, self._max_words):
            if (code := self._codes.get(ngram)) is not None:
                counts[code] += 1
        if not counts:
            return np.array([PADDING], dtype=np.int64), np.zeros(1, dtype=np.float32)
        codes = np.fromiter(counts.keys(), dtype=np.int64)
        tf = np.fromiter(counts.values(), dtype=np.float64)
        weights = (1 + np.log(tf) if self._options.sublinear_tf else tf) * self._idf[codes]
        return codes, (weights / np.linalg.norm(weights)).astype(np.float32)

    def longest_features(self) -> dict[str, np.ndarray]:
        """Return the features of a text of `max_words` words in which no n-gram is repeated, for resource estimation."""
        count = self._options.words * self._max_words
        if self._options.characters is not None:
            shortest, longest = self._options.characters
            count += (longest - shortest + 1) * _ASSUMED_WORD_LENGTH * self._max_words
        codes = np.arange(min(count, len(self._codes)), dtype=np.int64) + FIRST_KNOWN
        return {
            "input_ids": codes,
            "weights": np.full(len(codes), 1 / math.sqrt(len(codes)), dtype=np.float32),
        }


class NGramFitter:
    """Accumulator of the document frequencies of n-grams.

    Memory is bounded: above `max_counted` n-grams, those with the lowest counts are dropped, and the bound of dropped
    counts rises each time, as in word2vec's `ReduceVocab` (Mikolov et al., 2013).
    """

    def __init__(self, options: NGramsEncoderConfig, max_words: int, max_counted: int = _MAX_COUNTED) -> None:
        self._options, self._max_words, self._max_counted = options, max_words, max_counted
        self._counts: Counter[str] = Counter()
        self._num_texts = 0
        self._dropped = 0

    def partial_fit(self, text: str) -> None:
        """Count the n-grams of a text."""
        self._num_texts += 1
        self._counts.update(set(iter_ngrams(self._options, text, self._max_words)))
        while len(self._counts) > self._max_counted:
            self._dropped += 1
            self._counts = Counter({name: n for name, n in self._counts.items() if n > self._dropped})

    def finalize(self) -> NGramsEncoderConfig:
        """Return the options with the vocabulary and its idf. Raises DataError if no n-gram is frequent enough."""
        frequent = build_vocabulary(self._counts, self._options.min_frequency)
        vocabulary = frequent[: self._options.vocabulary_size]
        if not vocabulary:
            raise DataError(
                f"encoder.min_frequency: no word occurs in {self._options.min_frequency} of the {self._num_texts} texts of "
                "the training rows; use a lower value, or another column"
            )
        idf = [math.log((1 + self._num_texts) / (1 + self._counts[name])) + 1 for name in vocabulary]
        return self._options.model_copy(update={"vocabulary": vocabulary, "idf": idf})
