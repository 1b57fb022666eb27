"""Check the built site: complete references, short paths from the home page, and no broken links.

    python docs/tooling/check_site.py [SITE]     exits with 1 if a check fails

`make docs` runs it after the build. External links are not fetched.
"""

import argparse
import re
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import cli_pages
import spec_schema
from page import ROOT

sys.path.append(str(ROOT / "bench"))

import figures

_CODE = ("code", "pre", "script")
_UNRESOLVED = re.compile(r"\[[^][]+\]\[[^][]*\]")
"""A link by reference, in Markdown."""

MAX_CLICKS = 3
HOME = "index.html"
_NOT_A_PAGE = "404.html"
"""Its links are absolute, as it is shown at any URL."""


@dataclass
class HtmlPage(HTMLParser):
    """Anchors, spec keys, links, loaded files, and links that are still Markdown, of a page."""

    ids: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)
    unresolved: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._in_code = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the attributes of an element."""
        found = {name: value for name, value in attrs if value is not None}
        self._in_code += tag in _CODE
        if "id" in found:
            self.ids.add(found["id"])
        if "data-key" in found:
            self.keys.add(found["data-key"])
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        if tag == "link" and found.get("rel") != "canonical" and "href" in found:
            self.loaded.add(found["href"])
        if "src" in found:
            self.loaded.add(found["src"])

    def handle_endtag(self, tag: str) -> None:
        """Leave code."""
        self._in_code -= tag in _CODE

    def handle_data(self, data: str) -> None:
        """Collect links that are still Markdown."""
        if not self._in_code:
            self.unresolved += _UNRESOLVED.findall(data)


def read_pages(site: Path) -> dict[str, HtmlPage]:
    """Parse the pages of a site, by their path."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        if path.name != _NOT_A_PAGE:
            page = HtmlPage()
            page.feed(path.read_text(encoding="utf-8"))
            pages[path.relative_to(site).as_posix()] = page
    return pages


def resolve(link: str, page: str) -> tuple[str, str] | None:
    """Return the path and the anchor that a link of a page leads to; None for external links."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    path, anchor = urldefrag(link)
    if not path:
        return page, unquote(anchor)
    target = unquote(urlsplit(path).path)
    folder = Path("/") if target.startswith("/") else Path("/", page).parent
    resolved = (folder / target.lstrip("/")).as_posix()
    names: list[str] = []
    for name in resolved.split("/"):
        if name == "..":
            names = names[:-1]
        elif name not in ("", "."):
            names.append(name)
    found = "/".join(names)
    if target.endswith(("/", ".", "..")) or not found:
        found = f"{found}/{HOME}".lstrip("/")
    return found, unquote(anchor)


def broken_links(pages: dict[str, HtmlPage], site: Path) -> list[str]:
    """Return the links to missing files and anchors, and the files that a page loads from elsewhere."""
    problems = []
    for name, page in pages.items():
        problems += [f"{name}: {text}: not a link" for text in page.unresolved]
        for link in sorted(page.links | page.loaded):
            found = resolve(link, name)
            if found is None:
                problems += [f"{name}: loads {link} from the internet"] if link in page.loaded else []
                continue
            path, anchor = found
            if not (site / path).is_file():
                problems.append(f"{name}: {link}: no such page")
            elif anchor and path in pages and anchor not in pages[path].ids:
                problems.append(f"{name}: {link}: no such anchor")
    return problems


def clicks_from_home(pages: dict[str, HtmlPage]) -> dict[str, int]:
    """Return the smallest number of clicks from the home page to each page that links lead to."""
    clicks, pending = {HOME: 0}, deque([HOME])
    while pending:
        name = pending.popleft()
        for link in pages[name].links:
            found = resolve(link, name)
            if found and found[0] in pages and found[0] not in clicks:
                clicks[found[0]] = clicks[name] + 1
                pending.append(found[0])
    return clicks


def public_names() -> list[str]:
    """Return the dotted names of the public modules, classes, functions and methods of the package."""
    modules = figures.load_modules()
    documented = figures.documented_methods(modules)
    names = []
    for module in modules:
        dotted = ".".join(module.path.relative_to(ROOT / "platform").with_suffix("").parts)
        dotted = dotted.removesuffix(".__init__")
        for place, _ in figures.public_definitions(module, documented):
            names.append(".".join([dotted, *place.split(" ")[1:]]))
    return list(dict.fromkeys(names))


def command_anchors() -> list[str]:
    """Return the anchors of all commands and their options."""
    anchors = []
    for words, command in cli_pages.commands():
        anchors.append(cli_pages.command_id(words))
        anchors += [cli_pages.option_id(words, option) for option in cli_pages.options(command)]
    return anchors


def missing(kind: str, expected: Iterable[str], found: set[str]) -> list[str]:
    """Return a problem for each expected entry that no page has."""
    return [f"{kind} {name}: on no reference page" for name in expected if name not in found]


def check(site: Path) -> tuple[dict[str, int], list[str]]:
    """Return the counts and the problems of a built site."""
    pages = read_pages(site)
    reference = [page for name, page in pages.items() if name.startswith("reference/")]
    ids = set().union(*(page.ids for page in reference))
    keys = [f"{definition}.{key}" for definition, key in spec_schema.all_keys()]
    names, anchors, clicks = public_names(), command_anchors(), clicks_from_home(pages)
    problems = [
        *missing("name", names, ids),
        *missing("command", anchors, ids),
        *missing("spec key", keys, set().union(*(page.keys for page in reference))),
        *(f"{name}: no path of links from the home page" for name in pages if name not in clicks),
        *(f"{name}: {n} clicks from the home page" for name, n in clicks.items() if n > MAX_CLICKS),
        *broken_links(pages, site),
    ]
    counts = {
        "pages": len(pages),
        "links": sum(len(page.links) for page in pages.values()),
        "public names": len(names),
        "commands and options": len(anchors),
        "spec keys": len(keys),
        "clicks at most": max(clicks.values()),
    }
    return counts, problems


def main() -> None:
    """Print the counts and the problems."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("site", nargs="?", type=Path, default=ROOT / "site")
    counts, problems = check(parser.parse_args().site)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
