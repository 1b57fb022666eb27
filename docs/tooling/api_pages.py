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

PUBLIC_FOLDER = "reference/api"
"""Folder of the pages of the modules whose names `import rayfuse` offers."""

ERRORS = "rayfuse.errors"

FOLDER = "reference/packages"
"""Folder of the pages of all packages."""

_PUBLIC_OPTIONS = {"group_by_category": "false", "inherited_members": ["from_yaml", "to_yaml"]}
"""Options of mkdocstrings for the pages of what `import rayfuse` offers."""

_LOW_RANK = "---\nsearch:\n  boost: 0.001\n---\n\n"
"""Front matter of pages about internals, so that searches find guides first; a match in a heading counts a thousand times."""


@cache
def packages() -> dict[str, list[str]]:
    """Return the modules of each package, without the package's own module."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("__init__.py")):
        package = ".".join(path.parent.relative_to(SOURCES).parts)
        modules = sorted(file.stem for file in path.parent.glob("*.py") if file != path)
        found[package] = [f"{package}.{module}" for module in modules]
    return found


@cache
def public_names() -> dict[str, list[str]]:
    """Return the names that `import rayfuse` offers, by the module that defines them."""
    imports = [
        node for node in ast.walk(_tree("rayfuse")) if isinstance(node, ast.ImportFrom) and node.module
    ]
    found = {str(node.module): [alias.name for alias in node.names] for node in imports if node.level == 0}
    return {module: names for module, names in found.items() if module.startswith("rayfuse.")}


def public_page(module: str) -> str | None:
    """Return the path of the page of a module if it has names that `import rayfuse` offers, or errors."""
    is_public = module in public_names() or module == ERRORS
    return f"{PUBLIC_FOLDER}/{module.rpartition('.')[2]}.md" if is_public else None


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
    overview = f"{PUBLIC_FOLDER}/index.md"
    rows = [
        [
            f"[`rayfuse.{name}`]({_link(module_page(module), overview)}#{module}.{name})",
            _summary(module, name),
        ]
        for module, names in public_names().items()
        for name in sorted(names, key=lambda name: (name[0].isupper(), name))
        if _source(module).exists()
    ]
    text = (
        "# Python API\n\n"
        "What `import rayfuse` offers. The guide [Python API](../../python-api.md) shows how to use it, also in "
        f"notebooks.\n\n{table(['name', 'summary'], rows)}\n"
        "They raise the exceptions of [`rayfuse.errors`](errors.md). Every other public class and function is listed by "
        "package under [All packages](../packages/index.md).\n"
    )
    yield Page(overview, "Overview", text)
    for module in [*public_names(), ERRORS]:
        if _source(module).exists():
            title = module.rpartition(".")[2].capitalize()
            text = _directive(module, heading=title, members=_members(module), **_PUBLIC_OPTIONS)
            yield Page(module_page(module), title, f"{text}\n")


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
    return Page(path, package, f"{_LOW_RANK}{_directive(package)}\n\n{contents}")


def _module_page(module: str) -> Page:
    name = module.rpartition(".")[2]
    return Page(module_page(module), name, f"{_LOW_RANK}{_directive(module)}\n")


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
    """Return the navigation of what `import rayfuse` offers."""
    first, *others = _public_pages()
    return [first.path, *({page.title: page.path} for page in others)]


def _members(module: str) -> list[str]:
    """Return the names that a module defines, first those that `import rayfuse` offers."""
    first = public_names().get(module, [])
    defined = [name for node in _tree(module).body for name in _defined_names(node)]
    return [*first, *(name for name in defined if name not in first and not name.startswith("_"))]


def _defined_names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _directive(module: str, **options: Any) -> str:
    lines = [f"      {name}: {value}" for name, value in {"heading_level": 1, **options}.items()]
    return "\n".join([f"::: {module}", "    options:", *lines])


def _source(module: str) -> Path:
    path = SOURCES.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_source(module).read_text())


def _summary(module: str, name: str | None = None) -> str:
    """Return the first line of the docstring of a module, or of a name that it defines."""
    node: Any = _tree(module)
    if name is not None:
        node = next(n for n in node.body if getattr(n, "name", None) == name)
    return first_sentence(ast.get_docstring(node) or "")


def _link(target: str, page: str) -> str:
    return os.path.relpath(target, os.path.dirname(page))
