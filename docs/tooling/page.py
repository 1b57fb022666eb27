"""A generated page of the site."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Root of the repository."""


@dataclass(frozen=True)
class Page:
    """A page in Markdown that is made at build time."""

    path: str
    """Path below docs/."""
    title: str
    """Title in the navigation."""
    text: str
    """Text in Markdown."""


def first_sentence(text: str) -> str:
    """Return the first line of a docstring."""
    return text.strip().partition("\n")[0]


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
