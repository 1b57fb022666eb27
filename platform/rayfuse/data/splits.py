"""Stable splits: a row's side depends on the row alone, not on its neighbours or their order."""

from rayfuse.data.rows import Row

_RANGE = 2**64


def split_rows(rows: list[Row], fraction: float) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and about `fraction` of them to validate on. Equal rows land on one side."""
    kept: list[Row] = []
    held_out: list[Row] = []
    for row in rows:
        position = int.from_bytes(row.digest()[:8], "big") / _RANGE
        (held_out if position < fraction else kept).append(row)
    return kept, held_out
