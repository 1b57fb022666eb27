"""Pages of the Python API: the names that users need first, then a page per module of every package.

The sources are parsed, not imported, so a build needs neither torch nor Ray.
"""

import ast
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from page import ROOT, Page, first_sentence, table

SOURCES = ROOT / "platform"
PACKAGE = SOURCES / "rayfuse"

PUBLIC = {
    "rayfuse.api": ("functions", "Functions and results"),
    "rayfuse.spec.job": ("job", "Job"),
    "rayfuse.spec.sweep": ("sweep", "Sweep"),
    "rayfuse.spec.service": ("service", "Service"),
    "rayfuse.spec.cluster": ("cluster", "Cluster"),
    "rayfuse.errors": ("errors", "Errors"),
}
"""Module or package → name and title of its page, for what users need first."""

FOLDER = "reference/packages"
"""Folder of the pages of all packages."""

_LOW_RANK = "---\nsearch:\n  boost: 0.3\n---\n\n"
"""Front matter of pages about internals, so that searches find guides first."""


@cache
def packages() -> dict[str, list[str]]:
    """Return the modules of each package, without the package's own module."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("__init__.py")):
        package = ".".join(path.parent.relative_to(SOURCES).parts)
        modules = sorted(file.stem for file in path.parent.glob("*.py") if file != path)
        found[package] = [f"{package}.{module}" for module in modules]
    return found


def public_page(module: str) -> str | None:
    """Return the path of the page of a module if it is one of those that users need first."""
    for name, (file, _) in PUBLIC.items():
        if module == name or module.startswith(f"{name}."):
            return f"reference/api/{file}.md"
    return None


def module_page(module: str) -> str:
    """Return the path of the page of a module or package."""
    if page := public_page(module):
        return page
    if module in packages():
        return f"{FOLDER}/{module}/index.md"
    package, _, name = module.rpartition(".")
    return f"{FOLDER}/{package}/{name}.md"


def make_pages() -> list[Page]:
    """Return all pages of the Python API."""
    return [*_public_pages(), *_package_pages()]


def _public_pages() -> Iterator[Page]:
    shown = []
    for name, (_, title) in PUBLIC.items():
        modules = [m for m in (packages().get(name) or [name]) if _source(m).exists()]
        if not modules:
            continue
        path = module_page(name)
        shown.append([f"[{title}]({Path(path).name})", _summary(name)])
        body = "\n\n".join(_directive(module, level=2) for module in modules)
        yield Page(path, title, f"# {title}\n\n{_summary(name)}\n\n{body}\n")
    text = (
        "# Python API\n\n"
        "What a notebook or a script needs, made from the docstrings.\n\n"
        f"{table(['page', 'contents'], shown)}\n"
        "Every other public class and function is listed by package under [All packages](../packages/index.md).\n"
    )
    yield Page("reference/api/index.md", "Overview", text)


def _package_pages() -> Iterator[Page]:
    shown = [
        [f"[`{package}`]({_link(module_page(package), f'{FOLDER}/index.md')})", _summary(package)]
        for package in packages()
    ]
    text = (
        "# All packages\n\n"
        "Every public class and function. Imports point one way, from the command line down to `rayfuse.errors`: see "
        "[Architecture](../../architecture.md).\n\n"
        f"{table(['package', 'contents'], shown)}"
    )
    yield Page(f"{FOLDER}/index.md", "Overview", _LOW_RANK + text)
    for package, modules in packages().items():
        if not public_page(package):
            yield _package_page(package, modules)
            yield from (_module_page(module) for module in modules if not public_page(module))


def _package_page(package: str, modules: list[str]) -> Page:
    path = module_page(package)
    nested = [name for name in packages() if name.rpartition(".")[0] == package]
    rows = [[f"[`{name}`]({_link(module_page(name), path)})", _summary(name)] for name in [*nested, *modules]]
    contents = table(["module", "contents"], rows) if rows else ""
    return Page(path, package, f"{_LOW_RANK}{_directive(package, level=1)}\n\n{contents}")


def _module_page(module: str) -> Page:
    name = module.rpartition(".")[2]
    return Page(module_page(module), name, f"{_LOW_RANK}{_directive(module, level=1)}\n")


def navigation() -> list[Any]:
    """Return the navigation of the packages: a section for each, with its modules."""
    return [
        {"Overview": f"{FOLDER}/index.md"},
        *(
            {package: [module_page(package), *({m.rpartition(".")[2]: module_page(m)} for m in modules)]}
            for package, every in packages().items()
            if not public_page(package)
            for modules in [[m for m in every if not public_page(m)]]
        ),
    ]


def public_navigation() -> list[Any]:
    """Return the navigation of the pages that users need first."""
    pages = {page.path: page.title for page in _public_pages()}
    overview = "reference/api/index.md"
    return [overview, *({title: path} for path, title in pages.items() if path != overview)]


def _directive(module: str, level: int) -> str:
    return f"::: {module}\n    options:\n      heading_level: {level}"


def _source(module: str) -> Path:
    path = SOURCES.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _summary(module: str) -> str:
    return first_sentence(ast.get_docstring(ast.parse(_source(module).read_text())) or "")


def _link(target: str, page: str) -> str:
    return os.path.relpath(target, os.path.dirname(page))
