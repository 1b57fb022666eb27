"""Stable splits: a row's side depends on the row alone, not on its neighbours or their order."""

from rayfuse.data.rows import Row

_RANGE = 2**64


def is_held_out(row: Row, fraction: float) -> bool:
    """Whether a row is one of about `fraction` of all to validate on. Equal rows are on one side."""
    return int.from_bytes(row.digest()[:8], "big") / _RANGE < fraction
