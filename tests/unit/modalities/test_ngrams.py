"""N-grams of texts: vocabulary, TF-IDF weights as scikit-learn computes them, and the text input that reads them."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.feature_extraction.text import TfidfVectorizer

from rayfuse.errors import DataError, InvalidInputError
from rayfuse.modalities.ngrams import NGramFitter, iter_ngrams
from rayfuse.modalities.text import TextModality
from rayfuse.spec.encoders import NGramsEncoderConfig
from rayfuse.spec.inputs import TextInput

TEXTS = [
    "The card was lost, the card was stolen!",
    "My card arrived.",
    "I lost my wallet",
    "Where is my wallet? Where is my card?",
    "card",
]


def text_input(max_tokens: int = 128, **options: Any) -> TextInput:
    encoder = NGramsEncoderConfig(type="ngrams", **options)
    return TextInput(type="text", column="text", max_tokens=max_tokens, encoder=encoder)


def fit(texts: list[Any], **options: Any) -> TextModality:
    return TextModality(TextModality.fit(text_input(**options), texts))


def known(reader: TextModality) -> list[str]:
    encoder = reader.options.encoder
    assert isinstance(encoder, NGramsEncoderConfig)
    assert encoder.vocabulary is not None
    return encoder.vocabulary


def weights(reader: TextModality, value: Any) -> dict[str, float]:
    """Return the weight of each n-gram of a value."""
    found = reader.process(reader.decode(value))
    assert (found["input_ids"].dtype, found["weights"].dtype) == (np.int64, np.float32)
    names = ["", *known(reader)]
    return dict(zip([names[code] for code in found["input_ids"]], found["weights"].tolist(), strict=True))


@pytest.mark.parametrize("sublinear", [False, True])
@pytest.mark.parametrize("words", [1, 2, 3])
def test_words_are_weighted_as_scikit_learn_weights_them(words: int, sublinear: bool) -> None:
    reader = fit(TEXTS, words=words, sublinear_tf=sublinear, min_frequency=1)
    wanted = TfidfVectorizer(token_pattern=r"\w+", ngram_range=(1, words), sublinear_tf=sublinear)
    table = wanted.fit_transform(TEXTS).toarray()
    assert set(known(reader)) == set(wanted.vocabulary_)
    for text, row in zip(TEXTS, table, strict=True):
        expected = {name: row[column] for name, column in wanted.vocabulary_.items() if row[column]}
        assert weights(reader, text) == pytest.approx(expected, abs=1e-6)


def test_characters_are_weighted_as_scikit_learn_weights_them() -> None:
    wanted = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4))
    texts = [text.translate(str.maketrans("", "", ",.!?")) for text in TEXTS]
    wanted.fit(texts)
    options = NGramsEncoderConfig(type="ngrams", characters=(3, 4))
    words = NGramsEncoderConfig(type="ngrams")
    for text in texts:
        found = Counter(iter_ngrams(options, text, 99)) - Counter(iter_ngrams(words, text, 99))
        assert found == Counter("\t" + ngram for ngram in wanted.build_analyzer()(text))


def test_vocabulary_has_the_most_frequent_ngrams_in_a_fixed_order() -> None:
    assert known(fit(TEXTS, words=1)) == ["card", "my", "lost", "wallet"]
    assert known(fit(TEXTS, words=1, vocabulary_size=2)) == ["card", "my"]
    assert known(fit(TEXTS, words=1, min_frequency=3)) == ["card", "my"]
    assert known(fit(TEXTS, words=2)) == ["card", "my", "lost", "my card", "my wallet", "wallet"]


def test_contractions_are_one_word_and_any_alphabet_has_words() -> None:
    assert list(iter_ngrams(NGramsEncoderConfig(type="ngrams", words=1), "I don't, Ärger ПРИВЕТ 3.5 💊", 99)) == [
        "i", "don't", "ärger", "привет", "3", "5",
    ]  # fmt: skip


def test_texts_are_cut_after_max_tokens_words() -> None:
    reader = fit(["a b c"] * 2, max_tokens=2)
    assert known(reader) == ["a", "a b", "b"]
    assert weights(reader, "c a b") == {"a": 1.0}


def test_lists_of_words_are_texts() -> None:
    reader = fit([["red", "car"], "red car", ["blue"]])
    assert known(reader) == ["car", "red", "red car"]
    assert weights(reader, ["red", "car"]) == weights(reader, "Red car!")


@pytest.mark.parametrize("text", ["", "…", "unheard of"])
def test_a_text_without_known_ngrams_has_weight_0(text: str) -> None:
    assert weights(fit(TEXTS), text) == {"": 0.0}


def test_batches_are_padded_with_weight_0() -> None:
    reader = fit(TEXTS)
    batch = reader.collate([reader.process("card"), reader.process("my card"), reader.dummy_features()])
    assert batch["input_ids"].tolist()[0][1:] == [0, 0]
    assert batch["weights"][[0, 2], 1:].tolist() == [[0, 0], [0, 0]]
    np.testing.assert_allclose(np.linalg.norm(batch["weights"], axis=1), [1, 1, 0], rtol=1e-6)


def test_invalid_values_are_not_fitted() -> None:
    assert known(fit([5, "red", None, "red", "ab\ud800"])) == ["red"]
    with pytest.raises(InvalidInputError, match="expected a text, got int"):
        fit(["red", "red"]).decode(5)


def test_no_frequent_word_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"no word occurs in 2 of the 2 texts of the training rows; use a lower"
    ):
        fit(["red", "blue"])
    assert known(fit(["red", "blue"], min_frequency=1)) == ["blue", "red"]


def test_fitted_options_are_not_fitted_again() -> None:
    fitted = fit(TEXTS).options
    assert TextModality.fitter(fitted) is None
    assert TextModality.fitter(text_input()) is not None
    assert TextModality.fit(fitted, ["other words", "other words"]) == fitted


def test_memory_is_bounded_while_counting() -> None:
    """Rare n-grams are dropped, and frequent ones have exact counts."""
    fitter = NGramFitter(NGramsEncoderConfig(type="ngrams", words=1), 99, max_counted=50)
    for number in range(1000):
        fitter.partial_fit(f"always rare{number}")
    found = fitter.finalize()
    assert found.vocabulary == ["always"]
    assert found.idf == [1.0]


def test_longest_features_have_as_many_ngrams_as_a_text_can_have() -> None:
    reader = TextModality(text_input(max_tokens=8))
    assumed, notes = reader.with_assumed_statistics()
    assert notes == ["30000 n-grams"]
    assert TextModality(assumed).longest_features()["input_ids"].shape == (16,)
    assert fit(TEXTS).longest_features()["input_ids"].shape == (6,)
    assert reader.description() == "a text; the first 8 words are read"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"characters": [5, 3]}, r"\[5, 3\] is empty; write the shorter length first"),
        (
            {"vocabulary": ["a", "b"], "idf": [1.0]},
            "1 numbers for the 2 n-grams of `vocabulary`; write one per",
        ),
        ({"vocabulary": ["a"]}, "0 numbers for the 1 n-grams of `vocabulary`"),
    ],
)
def test_invalid_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NGramsEncoderConfig(type="ngrams", **options)
