"""Text from tokens, as they come: whole characters, up to a stop string."""

from collections.abc import Sequence
from typing import Any

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decodes a growing sequence of tokens, and returns text only once later tokens cannot change it.

    Decoding a token alone loses the spaces that it has in a text, and a character may be spread over several tokens;
    so each text is the difference between decodings of the last tokens with and without the new one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0
        self._decoded = 0

    def add(self, token_id: int) -> str:
        """Append a token; return the text that is final now, which may be empty."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._context : self._decoded])
        text = self._decode(self._ids[self._context :])
        if len(text) <= len(before) or text.endswith(_REPLACEMENT):
            return ""
        self._context, self._decoded = self._decoded, len(self._ids)
        return text[len(before) :]

    def finish(self) -> str:
        """Return what is left, without a character whose bytes are incomplete."""
        before = self._decode(self._ids[self._context : self._decoded])
        text = self._decode(self._ids[self._context :])
        return text[len(before) :].rstrip(_REPLACEMENT)

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class StopStrings:
    """Cuts a growing text at the first stop string, and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """Append a text; return the part that belongs to the reply for certain."""
        self._held += text
        found = [index for stop in self._stops if (index := self._held.find(stop)) >= 0]
        if found:
            self.found = True
            reply, self._held = self._held[: min(found)], ""
            return reply
        kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        split = len(self._held) - kept
        reply, self._held = self._held[:split], self._held[split:]
        return reply

    def finish(self) -> str:
        """Return what was held back."""
        reply, self._held = self._held, ""
        return reply


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
