"""Time stamps in the transcripts of Whisper (Radford et al., 2022, section 2.3)."""

import torch

from rayfuse.decoding.constraint import TokenConstraint

_LATEST_START = 50
"""Number of the latest time stamp that a transcript may begin with: 1 s."""


class TimeStampRules(TokenConstraint):
    """Restricts a transcript to segments, each between two time stamps that do not decrease.

    first: token of the time 0; the tokens behind it are later times. end: the end token; those before it are texts.
    """

    complete = finished = False

    def __init__(self, first: int, end: int) -> None:
        self._first, self._end = first, end
        self._ids: list[int] = []

    def check_budget(self, max_tokens: int) -> None:
        """Do nothing: a transcript that is cut off has no last time stamp."""

    def allowed(self, logits: torch.Tensor) -> torch.Tensor:
        tokens = torch.arange(len(logits))
        is_text, is_stamp = tokens < self._end, tokens >= self._first
        stamps = [token for token in self._ids if token >= self._first]
        if not self._ids:
            return is_stamp & (tokens <= self._first + _LATEST_START)
        opens, closes = self._last_stamp()
        earliest = stamps[-1] + (not closes)
        allowed = (is_text & (not closes)) | (is_stamp & (tokens >= earliest) & (not opens))
        allowed |= tokens == self._end
        return self._prefer_stamps(logits, allowed, is_stamp)

    def advance(self, token_id: int, remaining: int) -> int:
        self._ids.append(token_id)
        return token_id

    def _last_stamp(self) -> tuple[bool, bool]:
        """Return whether the last token opens a segment, and whether it closes one."""
        is_stamp = [token >= self._first for token in self._ids[-2:]]
        return is_stamp[-1] and (len(is_stamp) == 1 or is_stamp[0]), is_stamp == [False, True]

    def _prefer_stamps(
        self, logits: torch.Tensor, allowed: torch.Tensor, is_stamp: torch.Tensor
    ) -> torch.Tensor:
        """Allow time stamps alone where together they are more probable than any other token."""
        scores = logits.float().masked_fill(~allowed, -torch.inf)
        stamps = scores[is_stamp].logsumexp(0)
        return allowed & is_stamp if stamps > scores[~is_stamp].max() else allowed
