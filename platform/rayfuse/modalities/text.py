"""Text: tokens of a pretrained encoder's tokenizer, or UTF-8 bytes."""

from functools import cached_property
from typing import Any

import numpy as np

from rayfuse.errors import BadInput, DataError
from rayfuse.modalities.base import Features, Modality, pad
from rayfuse.modalities.pretrained import tokenizer
from rayfuse.spec.encoders import HuggingFaceEncoder
from rayfuse.spec.inputs import TextInput

_PADDING = 0
NO_TOKEN = -1
"""Of a word that was cut off, or that pads its row."""


class TextModality(Modality):
    """Features `input_ids` and `attention_mask`: int64 (tokens,); padded to the longest of a batch.

    A list of words also gives `word_starts`: int64 (words,), the token where each word begins, -1 where it was cut off.
    """

    forms = ("text", "json")
    media_types = ("text/plain", "application/json")

    def __init__(self, options: TextInput) -> None:
        self.options = options

    def decode(self, value: Any) -> str | list[str]:
        if isinstance(value, (list, tuple)):
            return [_checked(word, f"word {place}: ") for place, word in enumerate(value)]
        return _checked(value)

    def process(self, decoded: str | list[str]) -> Features:
        if isinstance(decoded, str):
            ids = self._token_ids(decoded)
            return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        ids, spans = self._tokens(" ".join(decoded))
        starts = word_starts(decoded, spans)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "word_starts": starts}

    def steps(self, decoded: str | list[str]) -> int:
        """Tokens."""
        return len(self.process(decoded)["input_ids"])

    def blank(self) -> Features:
        return self.process("")

    def collate(self, rows: list[Features]) -> Features:
        """Pad on the right to the longest row: int64 (rows, tokens) and, where a row is a list, (rows, words)."""
        stacked = {
            "input_ids": pad([row["input_ids"] for row in rows], 0, self._padding),
            "attention_mask": pad([row["attention_mask"] for row in rows], 0),
        }
        if any("word_starts" in row for row in rows):
            none = np.empty(0, dtype=np.int64)
            stacked["word_starts"] = pad([row.get("word_starts", none) for row in rows], 0, NO_TOKEN)
        return stacked

    def _token_ids(self, text: str) -> np.ndarray:
        limit = self.options.max_tokens
        if self._tokenizer is None:
            encoded = text.encode()[:limit] or b" "
            return np.frombuffer(encoded, dtype=np.uint8).astype(np.int64) + 1
        ids = self._tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return np.asarray(ids or [self._padding], dtype=np.int64)  # some tokenizers make nothing of ""

    def _tokens(self, text: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """Ids, and for each the characters of the text that it stands for: none for `[CLS]` and the like."""
        if self._tokenizer is None:
            ids = self._token_ids(text)
            lengths = (len(character.encode()) for character in text)
            spans = [(place, place + 1) for place, length in enumerate(lengths) for _ in range(length)]
            return ids, spans[: len(ids)]
        if not self._tokenizer.is_fast:
            raise DataError(
                f"{self.options.encoder.model}: its tokenizer does not tell which token is of which word; "  # type: ignore[union-attr]
                "give texts instead of lists of words, or name a model with a tokenizer.json"
            )
        limit = self.options.max_tokens
        found = self._tokenizer(text, truncation=True, max_length=limit, return_offsets_mapping=True)
        return np.asarray(found["input_ids"] or [self._padding], dtype=np.int64), found["offset_mapping"]

    @property
    def _padding(self) -> int:
        return _PADDING if self._tokenizer is None else self._tokenizer.pad_token_id or _PADDING

    @cached_property
    def _tokenizer(self) -> Any:
        encoder = self.options.encoder
        return tokenizer(encoder.model) if isinstance(encoder, HuggingFaceEncoder) else None


def word_starts(words: list[str], spans: list[tuple[int, int]]) -> np.ndarray:
    """int64 (words,): the first token of each of the words, which stand side by side with spaces between them.

    `spans`: of each token the characters that it stands for; a token may begin with the space before its word.
    """
    starts = np.full(len(words), NO_TOKEN, dtype=np.int64)
    tokens = [(token, first, last) for token, (first, last) in enumerate(spans) if last > first]
    next_token = position = 0
    for place, word in enumerate(words):
        end = position + len(word)
        while next_token < len(tokens) and tokens[next_token][2] <= position:
            next_token += 1
        if next_token < len(tokens) and tokens[next_token][1] < end:
            starts[place] = tokens[next_token][0]
        position = end + 1
    return starts


def _checked(value: Any, where: str = "") -> str:
    if not isinstance(value, str):
        raise BadInput(f"{where}a text belongs here, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{where}half a character at position {error.start} (a lone surrogate, \\u{ord(value[error.start]):x}); "
            "write the text as UTF-8"
        ) from None
    return value
