"""Text, as tokens of a pretrained encoder's tokenizer, as UTF-8 bytes, or as n-grams."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np

from rayfuse.errors import DataError, InvalidInputError, MissingInputError
from rayfuse.modalities.base import Features, InputFitter, Modality, Schema, check_unicode, pad
from rayfuse.modalities.messages import last_question
from rayfuse.modalities.ngrams import PADDING, NGramFitter, NGramVectorizer
from rayfuse.modalities.pretrained import load_tokenizer
from rayfuse.spec.base import is_missing
from rayfuse.spec.encoders import HuggingFaceEncoderConfig, NGramsEncoderConfig, PromptEncoderConfig
from rayfuse.spec.family import import_object
from rayfuse.spec.inputs import TextInput
from rayfuse.spec.templates import fill_template

_PAD_TOKEN_ID = 0
_BYTES_PER_TOKEN = 4
"""Average of the tokenizers of language models on English text."""
_CHARS_PER_TOKEN, _MIN_CHARS = 100, 10_000
"""Characters of a text that a tokenizer reads: 100 per token of `max_tokens`, and 10,000 more."""
NO_TOKEN = -1
"""Entry of `word_starts` for a word that was truncated, and for padding."""
PROMPT_TEXT = "utf8"
"""Feature of a text that a generation task puts into its prompt."""
PRETRAINED_PREFIX = "pretrained_"
"""Beginning of the names of the features of a pretrained encoder next to n-grams."""
NO_BYTE = -1
"""Entry of `utf8` for padding."""
_RETRIEVER = "rayfuse.registry.search:Retriever"
_BETWEEN_PASSAGES = "\n\n"


class RetrievedText(str):
    """Texts of passages."""

    passages: Sequence[Any]
    """The passages, the most similar first."""

    def __new__(cls, passages: Sequence[Any], column: str) -> "RetrievedText":
        """Join the texts in a column of passages; those without one are left out."""
        passages = [one for one in passages if not is_missing(one.values[column])]
        text = super().__new__(cls, _BETWEEN_PASSAGES.join(str(one.values[column]) for one in passages))
        text.passages = passages
        return text

    def sources(self) -> list[dict[str, Any]]:
        """Return the passages as JSON."""
        return [passage.to_dict() for passage in self.passages]


class TextModality(Modality):
    """Texts and lists of words.

    Features: `input_ids` and `attention_mask`, int64 (tokens,), padded to the longest of a batch. For a list of words
    also `word_starts`, int64 (words,): the index of each word's first token, `NO_TOKEN` for truncated words.

    For an encoder of n-grams: `input_ids`, int64 (n-grams,), codes of the distinct known n-grams; `weights`, float32
    (n-grams,), their TF-IDF weights. With a pretrained encoder next to them, also its features, whose names begin with
    `PRETRAINED_PREFIX`.

    For a text of a prompt: `utf8`, int64 (bytes,), padded with `NO_BYTE`; a generation task tokenizes and truncates it.
    """

    options: TextInput
    value_formats = ("text", "json")
    media_types = ("text/", "application/json", "application/octet-stream")

    @classmethod
    def fitter(cls, options: TextInput) -> InputFitter | None:
        encoder = options.encoder
        unfitted = isinstance(encoder, NGramsEncoderConfig) and encoder.vocabulary is None
        return _VocabularyFitter(cls(options)) if unfitted else None

    def decode(self, value: Any) -> str | list[str]:
        if self.options.template is not None and isinstance(value, Mapping):
            value = fill_template(self.options.template, value)
            if value is None:
                raise MissingInputError(f"no value in the columns {', '.join(self.options.source_columns)}")
        if self._retriever is not None and (query := last_question(value)) is not None:
            return self._retrieve(query)
        if isinstance(value, (list, tuple)):
            words = [_validate_text(word, f"word {place}: ") for place, word in enumerate(value)]
            return words if self._retriever is None else self._retrieve(" ".join(words))
        text = _validate_text(value)
        return text if self._retriever is None else self._retrieve(text)

    def sources(self, decoded: Any) -> list[dict[str, Any]]:
        return decoded.sources() if isinstance(decoded, RetrievedText) else []

    def content(self, value: Any) -> Any:
        return value if self._retriever is None else self.decode(value)

    def _retrieve(self, query: str) -> RetrievedText:
        assert self.options.retrieve is not None
        return RetrievedText(self._retriever.find(query), self.options.retrieve.column)

    @cached_property
    def _retriever(self) -> Any:
        options = self.options.retrieve
        return None if options is None else import_object(_RETRIEVER)(options)

    def process(self, decoded: str | list[str]) -> Features:
        if self._is_prompt:
            return {PROMPT_TEXT: encode_text(self._cut(_as_text(decoded)))}
        if self._vectorizer is not None:
            codes, weights = self._vectorizer.transform(_as_text(decoded))
            return {"input_ids": codes, "weights": weights, **self._pretrained_features(decoded)}
        if isinstance(decoded, str):
            ids = self._token_ids(decoded)
            return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        ids, spans = self._tokenize_with_offsets(" ".join(decoded))
        starts = word_starts(decoded, spans)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "word_starts": starts}

    def num_steps(self, decoded: str | list[str]) -> int:
        """Return the number of tokens or n-grams, or about that number for a text of a prompt."""
        features = self.process(decoded)
        if self._is_prompt:
            return min(self.options.max_tokens, len(features[PROMPT_TEXT]) // _BYTES_PER_TOKEN + 1)
        return len(features["input_ids"])

    def dummy_features(self) -> Features:
        return self.process("")

    @property
    def length_mask(self) -> str | None:
        return super().length_mask if self._vectorizer is None and not self._is_prompt else None

    def with_assumed_statistics(self) -> tuple[TextInput, list[str]]:
        """Assume that the vocabulary of an encoder of n-grams is full."""
        encoder = self.options.encoder
        if not isinstance(encoder, NGramsEncoderConfig) or encoder.vocabulary is not None:
            return self.options, []
        vocabulary = [str(number) for number in range(encoder.vocabulary_size)]
        assumed = encoder.model_copy(update={"vocabulary": vocabulary, "idf": [1.0] * len(vocabulary)})
        return self.options.model_copy(update={"encoder": assumed}), [f"{len(vocabulary)} n-grams"]

    def longest_features(self, as_words: bool = False) -> Features:
        if self._vectorizer is not None:
            return {**self._vectorizer.longest_features(), **self._longest_pretrained_features()}
        count = self.options.max_tokens
        if self._is_prompt:
            return self.process("a " * count)
        features = self.process(["a"] * count if as_words else "a " * count)
        return {name: values[:count] for name, values in features.items()}  # a tokenizer adds special tokens

    def json_schema(self) -> Schema:
        schema: Schema = {"type": ["string", "array"], "items": {"type": "string"}}
        if self.options.template is None:
            return schema
        columns = {name: {"type": ["string", "number", "null"]} for name in self.options.source_columns}
        return {**schema, "type": [*schema["type"], "object"], "properties": columns}

    def example(self) -> str | dict[str, str]:
        text = "What is this?"
        return text if self.options.template is None else dict.fromkeys(self.options.source_columns, text)

    def description(self) -> str:
        if self.options.retrieve is not None:
            return f"a query that finds {self.options.retrieve.top} passages, which are read"
        unit = "tokens" if self._vectorizer is None else "words"
        return f"a text; the first {self.options.max_tokens} {unit} are read"

    def collate(self, rows: list[Features]) -> Features:
        """Pad on the right to the longest row: (rows, tokens), and (rows, words) if a row is a list of words."""
        if self._is_prompt:
            return {PROMPT_TEXT: pad([row[PROMPT_TEXT] for row in rows], 0, NO_BYTE)}
        if self._vectorizer is not None:
            return self._collate_ngrams(rows)
        stacked = {
            "input_ids": pad([row["input_ids"] for row in rows], 0, self._pad_token_id),
            "attention_mask": pad([row["attention_mask"] for row in rows], 0),
        }
        if any("word_starts" in row for row in rows):
            none = np.empty(0, dtype=np.int64)
            stacked["word_starts"] = pad([row.get("word_starts", none) for row in rows], 0, NO_TOKEN)
        return stacked

    def _collate_ngrams(self, rows: list[Features]) -> Features:
        stacked = {name: pad([row[name] for row in rows], 0, PADDING) for name in ("input_ids", "weights")}
        if self._pretrained is None:
            return stacked
        return stacked | _add_prefix(self._pretrained.collate([pretrained_features(row) for row in rows]))

    def _pretrained_features(self, decoded: str | list[str]) -> Features:
        """Return the features of the pretrained encoder next to n-grams; none without one."""
        return {} if self._pretrained is None else _add_prefix(self._pretrained.process(_as_text(decoded)))

    def _longest_pretrained_features(self) -> Features:
        return {} if self._pretrained is None else _add_prefix(self._pretrained.longest_features())

    def _token_ids(self, text: str) -> np.ndarray:
        limit = self.options.max_tokens
        text = self._cut(text)
        if self._tokenizer is None:
            encoded = text.encode()[:limit] or b" "
            return np.frombuffer(encoded, dtype=np.uint8).astype(np.int64) + 1
        ids = self._tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return np.asarray(
            ids or [self._pad_token_id], dtype=np.int64
        )  # some tokenizers return no token for ""

    def _tokenize_with_offsets(self, text: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """Return token ids and the character span of each; the span of special tokens is empty."""
        text = self._cut(text)
        if self._tokenizer is None:
            ids = self._token_ids(text)
            lengths = (len(character.encode()) for character in text)
            spans = [(place, place + 1) for place, length in enumerate(lengths) for _ in range(length)]
            return ids, spans[: len(ids)]
        if not self._tokenizer.is_fast:
            raise DataError(
                f"{self.options.encoder.model}: its tokenizer has no character offsets, which lists of words need; "  # type: ignore[attr-defined]
                "give texts instead of lists of words, or use a model with a tokenizer.json"
            )
        limit = self.options.max_tokens
        found = self._tokenizer(text, truncation=True, max_length=limit, return_offsets_mapping=True)
        return np.asarray(found["input_ids"] or [self._pad_token_id], dtype=np.int64), found["offset_mapping"]

    def _cut(self, text: str) -> str:
        """Return the part of a text that is tokenized: tokenizers read a text to its end before they truncate it."""
        if self._tokenizer is None and not self._is_prompt:
            return text[: self.options.max_tokens]
        limit = _CHARS_PER_TOKEN * self.options.max_tokens + _MIN_CHARS
        return (
            text[-limit:] if getattr(self._tokenizer, "truncation_side", "right") == "left" else text[:limit]
        )

    @property
    def _is_prompt(self) -> bool:
        return isinstance(self.options.encoder, PromptEncoderConfig)

    @property
    def _pad_token_id(self) -> int:
        return _PAD_TOKEN_ID if self._tokenizer is None else self._tokenizer.pad_token_id or _PAD_TOKEN_ID

    @cached_property
    def _tokenizer(self) -> Any:
        encoder = self.options.encoder
        return load_tokenizer(encoder.model) if isinstance(encoder, HuggingFaceEncoderConfig) else None

    @cached_property
    def _pretrained(self) -> "TextModality | None":
        """The modality of the pretrained encoder next to n-grams."""
        encoder = self.options.encoder
        if not isinstance(encoder, NGramsEncoderConfig) or encoder.pretrained is None:
            return None
        return TextModality(self.options.model_copy(update={"encoder": encoder.pretrained}))

    @cached_property
    def _vectorizer(self) -> NGramVectorizer | None:
        encoder = self.options.encoder
        if not isinstance(encoder, NGramsEncoderConfig):
            return None
        return NGramVectorizer(encoder, self.options.max_tokens)


class _VocabularyFitter(InputFitter):
    """N-grams of the training rows."""

    def __init__(self, modality: TextModality) -> None:
        self._modality = modality
        self._fitter = NGramFitter(modality.options.encoder, modality.options.max_tokens)  # type: ignore[arg-type]

    def partial_fit(self, value: Any) -> None:
        with suppress(InvalidInputError):
            self._fitter.partial_fit(_as_text(self._modality.decode(value)))

    def finalize(self) -> TextInput:
        return self._modality.options.model_copy(update={"encoder": self._fitter.finalize()})


def word_starts(words: list[str], offsets: list[tuple[int, int]]) -> np.ndarray:
    """Return the index of the first token of each word, int64 (words,); `NO_TOKEN` for truncated words.

    `offsets`: the character span of each token in the words joined with spaces; it may include the space before a word.
    """
    starts = np.full(len(words), NO_TOKEN, dtype=np.int64)
    tokens = [(token, first, last) for token, (first, last) in enumerate(offsets) if last > first]
    next_token = position = 0
    for place, word in enumerate(words):
        end = position + len(word)
        while next_token < len(tokens) and tokens[next_token][2] <= position:
            next_token += 1
        if next_token < len(tokens) and tokens[next_token][1] < end:
            starts[place] = tokens[next_token][0]
        position = end + 1
    return starts


def encode_text(text: str) -> np.ndarray:
    """Return the feature `PROMPT_TEXT` of a text: its UTF-8 bytes, int64 (bytes,)."""
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)


def decode_text(utf8: np.ndarray) -> str:
    """Return the text of a feature `PROMPT_TEXT`, int64 (bytes,), which may be padded."""
    return utf8[utf8 != NO_BYTE].astype(np.uint8).tobytes().decode()


def pretrained_features(features: Mapping[str, Any]) -> dict[str, Any]:
    """Return the features of a pretrained encoder next to n-grams, by the names that it reads."""
    return {
        name.removeprefix(PRETRAINED_PREFIX): value
        for name, value in features.items()
        if name.startswith(PRETRAINED_PREFIX)
    }


def _add_prefix(features: Features) -> Features:
    return {PRETRAINED_PREFIX + name: value for name, value in features.items()}


def _as_text(decoded: str | list[str]) -> str:
    return decoded if isinstance(decoded, str) else " ".join(decoded)


def _validate_text(value: Any, prefix: str = "") -> str:
    if not isinstance(value, str):
        raise InvalidInputError(f"{prefix}expected a text, got {type(value).__name__}")
    check_unicode(value, prefix)
    return value
