"""Links to the glossary, from the first mention of a term on a page."""

import re
from functools import cache

from page import ROOT

GLOSSARY = "glossary.md"

_TERM = re.compile(r"^\*\*(?P<term>[^*`_]+)\*\* – (?P<text>.+)$", re.MULTILINE)
_SINGLE_WORDS = ("candidate", "champion", "gate")
"""Terms of one word that are linked; others, such as *run*, are too common."""
_NOT_IN = ("a", "code", "pre", "h1", "h2", "h3", "h4", "th")


def add_anchors(glossary: str) -> str:
    """Give every term of the glossary an anchor."""
    return _TERM.sub(
        lambda found: f"**{found['term']}**{{ #{_anchor(found['term'])} }} – {found['text']}", glossary
    )


@cache
def linked_terms() -> dict[str, str]:
    """Return the first sentence about each term that is linked, by the term."""
    terms = {found["term"]: found["text"] for found in _TERM.finditer((ROOT / "docs" / GLOSSARY).read_text())}
    return {
        term: re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", text).partition(". ")[0]
        for term, text in terms.items()
        if " " in term or term.lower() in _SINGLE_WORDS
    }


def link_terms(html: str, terms: dict[str, str], url: str) -> str:
    """Link the first mention of each term in the text of a page, with its definition as a tooltip.

    url: address of the glossary, relative to the page.
    """
    missing = {term.lower(): (term, text) for term, text in terms.items()}
    depth, parts = 0, []
    for part in re.split(r"(<[^>]+>)", html):
        tag = re.match(r"</?([a-z0-9]+)", part)
        if tag and tag[1] in _NOT_IN:
            depth += -1 if part.startswith("</") else 1
        parts.append(part if tag or depth else _link_in_text(part, missing, url))
    return "".join(parts)


def _link_in_text(text: str, missing: dict[str, tuple[str, str]], url: str) -> str:
    if not missing or not text.strip():
        return text
    longest_first = "|".join(sorted(map(re.escape, missing), key=len, reverse=True))

    def replace(found: re.Match[str]) -> str:
        if found[1].lower() not in missing:
            return found[0]
        term, definition = missing.pop(found[1].lower())
        title = definition.replace('"', "&quot;")
        return f'<a class="term" href="{url}#{_anchor(term)}" title="{title}">{found[0]}</a>'

    return re.sub(rf"\b({longest_first})s?\b", replace, text, flags=re.IGNORECASE)


def _anchor(term: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", term.lower())
