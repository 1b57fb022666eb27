"""Pages made from files outside of docs/: shipped specs, the example of custom parts, and the changelog.

Guides link to these files by their path in the repository; on the site, the links lead to these pages. Links to modules
and packages lead to their pages.
"""

import os
import re
from functools import cache

import yaml
from api_pages import module_page
from page import ROOT, Page

RECIPES = "reference/recipes.md"
CUSTOM_PARTS = "reference/custom-parts.md"
CHANGELOG = "changelog.md"

_SPEC_FOLDERS = {"jobs": "Jobs", "tune": "Sweeps", "serve": "Services", "k8s": "Clusters"}
_TOY_PARTS = "tests/toy_parts"


@cache
def recipe_files() -> list[str]:
    """Return the paths of the shipped specs."""
    return [
        f"{folder}/{path.name}"
        for folder in _SPEC_FOLDERS
        for path in sorted((ROOT / folder).glob("*.yaml"))
        if "kind" in next(yaml.safe_load_all(path.read_text()))
        and "apiVersion" not in next(yaml.safe_load_all(path.read_text()))
    ]


@cache
def custom_part_files() -> list[str]:
    """Return the paths of the example of custom parts."""
    return [
        f"{_TOY_PARTS}/{path.name}"
        for path in sorted((ROOT / _TOY_PARTS).glob("*.py"))
        if path.stat().st_size
    ]


def decisions() -> list[str]:
    """Return the paths of the records of decisions, in order."""
    return [f"adr/{path.name}" for path in sorted((ROOT / "docs" / "adr").glob("*.md"))]


def make_pages() -> list[Page]:
    """Return the pages."""
    return [_recipes(), _custom_parts(), _changelog()]


def target_of(path: str) -> str | None:
    """Return the page, with an anchor, that shows a file of the repository; None if there is none."""
    if path in recipe_files():
        return f"{RECIPES}#{_anchor(path)}"
    if path == _TOY_PARTS:
        return CUSTOM_PARTS
    if path in custom_part_files():
        return f"{CUSTOM_PARTS}#{_anchor(path)}"
    if path.startswith("platform/rayfuse"):
        return module_page(path.removeprefix("platform/").removesuffix(".py").replace("/", "."))
    if path == "CHANGELOG.md":
        return CHANGELOG
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else None


def rewrite_links(text: str, page: str) -> str:
    """Let links to files outside of docs/ lead to the pages that show them."""

    def replace(found: re.Match[str]) -> str:
        path, _, anchor = found[1].partition("#")
        inside = os.path.normpath(os.path.join("docs", os.path.dirname(page), path))
        target = None if inside.startswith("docs/") else target_of(inside)
        if target is None:
            return found[0]
        relative = os.path.relpath(target, os.path.dirname(page) or ".")
        return f"]({relative}#{anchor})" if anchor else f"]({relative})"

    return re.sub(r"\]\((\.\./[^)\s]+)\)", replace, text)


def _recipes() -> Page:
    text = [
        "# Shipped specs\n",
        "Specs of the repository, as they are tested and submitted. What they reach is on the page "
        "[Quality](../quality.md).\n",
    ]
    for folder, title in _SPEC_FOLDERS.items():
        text.append(f"## {title}\n")
        text += [_code(path, "yaml") for path in recipe_files() if path.startswith(f"{folder}/")]
    return Page(RECIPES, "Shipped specs", "\n".join(text))


def _custom_parts() -> Page:
    text = [
        "# Example package of custom parts\n",
        "A package with one custom part of each family, which the tests train, serve and explain: see "
        "[Extending Rayfuse](../extending.md).\n",
        *(_code(path, "python") for path in custom_part_files()),
    ]
    return Page(CUSTOM_PARTS, "Example of custom parts", "\n".join(text))


def _changelog() -> Page:
    text = (ROOT / "CHANGELOG.md").read_text()
    links = re.sub(r"\]\(docs/", "](", text)
    return Page(CHANGELOG, "Changelog", links)


def _code(path: str, language: str) -> str:
    content = (ROOT / path).read_text().rstrip()
    return f"### {path} {{ #{_anchor(path)} }}\n\n````{language}\n{content}\n````\n"


def _anchor(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.lower()).strip("-")
