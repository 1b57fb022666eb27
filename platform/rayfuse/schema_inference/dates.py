"""Dates and times in texts."""

import datetime
from collections.abc import Sequence

_DATES = (
    "%B %d, %Y", "%b %d, %Y", "%d %B %Y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d",
    "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%m/%d/%y", "%d/%m/%y",
)  # fmt: skip
_TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p")
_FORMATS = tuple(date + time for date in _DATES for time in _TIMES)
_MAX_CHARS = 40
_NUM_TRIED = 200


def hold_dates(texts: Sequence[str]) -> bool:
    """Return whether all of the first texts are dates or times in one format."""
    tried = [text.strip() for text in texts[:_NUM_TRIED]]
    if not all(any(sign.isdigit() for sign in text) and 8 <= len(text) <= _MAX_CHARS for text in tried):
        return False
    return are_iso(tried) or any(all(_fits(text, form) for text in tried) for form in _FORMATS)


def are_iso(texts: Sequence[str]) -> bool:
    """Return whether all texts are dates or times as in ISO 8601, which `data.time` reads."""
    return all(_is_iso(text.strip()) for text in texts[:_NUM_TRIED])


def _is_iso(text: str) -> bool:
    if "-" not in text:  # 20110530 is rather a number
        return False
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _fits(text: str, form: str) -> bool:
    try:
        datetime.datetime.strptime(text, form)
    except ValueError:
        return False
    return True
