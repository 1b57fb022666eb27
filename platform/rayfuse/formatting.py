"""Formatting of texts and values for messages and reports."""

import re
import reprlib
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")

CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Characters that change what a terminal shows; tabs and ends of lines are not among them."""


def printable(text: str, limit: int | None = None) -> str:
    """Return `text` in one printable line, with at most `limit` characters.

    Other characters are escaped as in `repr`: control characters, ends of lines, lone surrogates, and marks that change
    the direction of a text.
    """
    if limit is not None:
        text = text[: limit + 1]  # escapes only make it longer
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return shown if limit is None else truncate(shown, limit)


def escape_controls(text: str) -> str:
    """Return a text of any number of lines with what a terminal must not get escaped: control characters and surrogates."""
    return _NOT_FOR_TERMINALS.sub(lambda match: repr(match[0])[1:-1], text)


_NOT_FOR_TERMINALS = re.compile(rf"{CONTROL_CHARACTER.pattern}|\r(?!\n)|[\ud800-\udfff]")


def truncate(text: str, limit: int = 80) -> str:
    """Return `text` with at most `limit` characters; a longer one ends with `…`."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def truncate_middle(text: str, limit: int) -> str:
    """Return `text` with at most `limit` characters; a longer one keeps its beginning and end, which often differ."""
    end = limit // 3
    return text if len(text) <= limit else f"{text[: limit - end - 1]}…{text[-end:]}"


def truncated_repr(value: object, limit: int = 60) -> str:
    """Return `repr(value)`, which is printable, with at most `limit` characters.

    Only the first items of a large value are formatted, and the first levels of a nested one.
    """
    return truncate(_BoundedRepr().repr(value), limit)


class _BoundedRepr(reprlib.Repr):
    """Builds the beginning of what `repr` returns, in bounded time."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 30
        self.maxstring = self.maxlong = self.maxother = 1000

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Keep the order of the keys, which the base class sorts."""
        if level <= 0 and x:
            return "{...}"
        items = (f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}" for key, value in x.items())
        return (
            "{" + ", ".join([*islice(items, self.maxdict), *(["..."] if len(x) > self.maxdict else [])]) + "}"
        )

    def repr_int(self, x: int, level: int) -> str:
        """Name an integer that is too long to be converted to a text."""
        try:
            return super().repr_int(x, level)
        except ValueError:
            return f"<an integer of {x.bit_length()} bits>"


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


def without_averages(metrics: Mapping[str, T]) -> dict[str, T]:
    """Return the metrics except averages over classes (micro, macro, weighted)."""
    return {
        name: value for name, value in metrics.items() if not name.endswith(("_micro", "_macro", "_weighted"))
    }


def format_cross_validation(statistics: Mapping[str, Mapping[str, float]], folds: int) -> str:
    """Return a line with mean ± standard deviation of each metric, without averages over classes."""
    found = without_averages(statistics)
    shown = "  ".join(f"{name} {of['mean']:.4f} ± {of['std']:.4f}" for name, of in found.items())
    return f"cross-validation, {folds} folds: {shown}"


def metric_table(by_inputs: Mapping[str, Mapping[str, float]]) -> str:
    """Format a table with a row per subset of inputs and a column per metric, without averages over classes.

    Texts are not decoded for all subsets: `-` stands for a metric that was not computed. If these are not all subsets, a
    line below names the choice.
    """
    shown = list(without_averages(next(iter(by_inputs.values()))))
    text = table(
        ["inputs", *shown],
        [[name, *(metrics.get(metric) for metric in shown)] for name, metrics in by_inputs.items()],
    )
    num_inputs = max(name.count("+") + 1 for name in by_inputs)
    if len(by_inputs) == 2**num_inputs - 1:
        return text
    return (
        f"{text}\n{len(by_inputs)} of the {2**num_inputs - 1} subsets of {num_inputs} inputs: all, all but one, each "
        "alone, and the most frequent of the rows"
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
