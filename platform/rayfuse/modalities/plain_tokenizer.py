"""Tokens of texts that users write, without special tokens."""

import re
from functools import cached_property
from typing import Any

from rayfuse.modalities.messages import FILE_MARK, without_marks


class PlainTokenizer:
    """A tokenizer of Hugging Face for texts that stand between special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text, with those of the special tokens that it names."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def truncate(self, text: str, max_tokens: int) -> str:
        """Return the part of a text that its first `max_tokens` tokens make up, without the names of special tokens.

        The tokenizer would read such a name as the token, and the text would end its turn in the prompt. Marks of files are
        removed, too.
        """
        text = self.clean(without_marks(text))
        if not self._tokenizer.is_fast:
            ids = self.ids(text)
            return text if len(ids) <= max_tokens else str(self._tokenizer.decode(ids[:max_tokens]))
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text if len(found) <= max_tokens else text[: found[max_tokens - 1][1]]

    def clean(self, text: str) -> str:
        """Return a text without the names of special tokens, also around marks of files, which are kept."""
        while (cleaned := self._names.sub(_marks_in, text)) != text:
            text = cleaned
        return text

    def find_special(self, ids: list[int]) -> str | None:
        """Return the name of the first special token among some tokens; None if there is none."""
        return next((self._special_tokens[token] for token in ids if token in self._special_tokens), None)

    @cached_property
    def _special_tokens(self) -> dict[int, str]:
        """Names of the special tokens by their ids."""
        found = self._tokenizer.added_tokens_decoder.items()
        return {number: token.content for number, token in found if token.special}

    @cached_property
    def _names(self) -> re.Pattern[str]:
        names = (f"{FILE_MARK}*".join(map(re.escape, name)) for name in self._special_tokens.values())
        return re.compile("|".join(names) or "(?!)")


def _marks_in(found: re.Match[str]) -> str:
    return FILE_MARK * found[0].count(FILE_MARK)
