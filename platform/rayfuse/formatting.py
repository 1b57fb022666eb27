"""Formatting of texts and values for messages and reports."""


def truncate(text: str, limit: int) -> str:
    """Return `text` with at most `limit` characters; a longer one ends with `…`."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def truncated_repr(value: object, limit: int = 60) -> str:
    """Return `repr(value)` with at most `limit` characters."""
    return truncate(repr(value), limit)


def first_line(text: str, limit: int = 300) -> str:
    """Return the first line of `text` that is not blank, with at most `limit` characters; empty if there is none."""
    return truncate((text.strip().splitlines() or [""])[0], limit)


def format_bytes(count: float) -> str:
    """Format bytes in units of a thousand: 512 B, 1.5 kB, 20 MB, 3.25 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} GB"
