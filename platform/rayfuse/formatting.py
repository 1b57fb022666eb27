"""Formatting of texts and values for messages and reports."""

from collections.abc import Mapping, Sequence


def truncate(text: str, limit: int = 80) -> str:
    """Return `text` with at most `limit` characters; a longer one ends with `…`."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def truncate_middle(text: str, limit: int) -> str:
    """Return `text` with at most `limit` characters; a longer one keeps its beginning and end, which often differ."""
    end = limit // 3
    return text if len(text) <= limit else f"{text[: limit - end - 1]}…{text[-end:]}"


def truncated_repr(value: object, limit: int = 60) -> str:
    """Return `repr(value)` with at most `limit` characters."""
    return truncate(repr(value), limit)


def plural(count: float, noun: str) -> str:
    """Return a count and its noun, as in `1 worker` or `2 workers`."""
    return f"{count:g} {noun}" if count == 1 else f"{count:g} {noun}s"


def no_capacity(count: int, cpus: float, gpus: float, noun: str = "worker") -> str:
    """Return the beginning of an error about resources, as in `2 workers with 4 CPUs and 1 GPU each do not fit`."""
    resources = plural(cpus, "CPU") + (f" and {plural(gpus, 'GPU')}" if gpus else "")
    verb = "does not fit" if count == 1 else "each do not fit"
    return f"{plural(count, noun)} with {resources} {verb}"


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


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format a table with aligned columns: numbers to the right, everything else to the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    right = [bool(rows) and all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(header))]
    lines = (
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        )
        for row in [list(header), *cells]
    )
    return "\n".join(line.rstrip() for line in lines)


def metric_table(by_inputs: Mapping[str, Mapping[str, float]]) -> str:
    """Format a table with a row per subset of inputs and a column per metric, without averages over classes."""
    shown = [
        name
        for name in next(iter(by_inputs.values()))
        if not name.endswith(("_micro", "_macro", "_weighted"))
    ]
    return table(
        ["inputs", *shown],
        [[name, *(metrics[metric] for metric in shown)] for name, metrics in by_inputs.items()],
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
