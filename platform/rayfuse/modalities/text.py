"""Text: tokens of a pretrained encoder's tokenizer, or UTF-8 bytes."""

from functools import cached_property
from typing import Any

import numpy as np

from rayfuse.errors import BadInput
from rayfuse.modalities.base import Features, Modality
from rayfuse.modalities.pretrained import tokenizer
from rayfuse.spec.encoders import HuggingFaceEncoder
from rayfuse.spec.inputs import TextInput

_PADDING = 0


class TextModality(Modality):
    """Features `input_ids` and `attention_mask`: int64 (tokens,); padded to the longest of a batch."""

    from_file = False
    media_types = ("text/plain",)

    def __init__(self, options: TextInput) -> None:
        self.options = options

    def decode(self, value: Any) -> str:
        if not isinstance(value, str):
            raise BadInput(f"a text belongs here, not {type(value).__name__}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadInput(
                f"half a character at position {error.start} (a lone surrogate, \\u{ord(value[error.start]):x}); "
                "write the text as UTF-8"
            ) from None
        return value

    def process(self, decoded: str) -> Features:
        ids = self._token_ids(decoded)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def blank(self) -> Features:
        return self.process("")

    def collate(self, rows: list[Features]) -> Features:
        """Pad on the right to the longest row: int64 (rows, tokens)."""
        longest = max(len(row["input_ids"]) for row in rows)
        ids = np.full((len(rows), longest), self._padding, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[i, :length] = row["input_ids"]
            mask[i, :length] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def _token_ids(self, text: str) -> np.ndarray:
        limit = self.options.max_tokens
        if self._tokenizer is None:
            encoded = text.encode()[:limit] or b" "
            return np.frombuffer(encoded, dtype=np.uint8).astype(np.int64) + 1
        ids = self._tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return np.asarray(ids or [self._padding], dtype=np.int64)  # some tokenizers make nothing of ""

    @property
    def _padding(self) -> int:
        return _PADDING if self._tokenizer is None else self._tokenizer.pad_token_id or _PADDING

    @cached_property
    def _tokenizer(self) -> Any:
        encoder = self.options.encoder
        return tokenizer(encoder.model) if isinstance(encoder, HuggingFaceEncoder) else None
