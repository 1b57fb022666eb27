"""Print the figures of the code base with their limits, and exit with 1 if one is missed.

    python bench/figures.py [--list]     with --list, also each place that misses a limit

Run by `make figures`. Counted is the package; a method that overrides a documented one needs no docstring of its own.
"""

import argparse
import ast
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "rayfuse"
RAYFUSE = Path(sys.executable).with_name("rayfuse")

MAX_FUNCTION_LINES = 40
MAX_CLASS_LINES = 250
MAX_IMPORTS = 25
STARTUP_LIMITS = {"--help": 0.1, "schema job": 0.35}
STARTUP_RUNS = 11

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Figure:
    """A measured figure, its limit, and the places that miss it."""

    name: str
    value: str
    limit: str
    misses: list[str] = field(default_factory=list)
    holds: bool = True


@dataclass(frozen=True)
class Module:
    """A parsed module of the package."""

    path: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        """Path below the repository."""
        return str(self.path.relative_to(ROOT))

    @property
    def classes(self) -> Iterator[ast.ClassDef]:
        """All classes, nested ones too."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))


def load_modules() -> list[Module]:
    """Parse every module of the package."""
    return [Module(path, ast.parse(path.read_text())) for path in sorted(PACKAGE.rglob("*.py"))]


def num_lines(node: ast.AST) -> int:
    """Lines from the first to the last one of a function or class."""
    return node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]


def num_code_lines(function: Function) -> int:
    """Lines of a function without its docstring: those of the public API describe every argument and error."""
    return num_lines(function) - (num_lines(function.body[0]) if ast.get_docstring(function) else 0)


def size_figures(modules: list[Module]) -> list[Figure]:
    """Longest function, longest class, most imports."""
    functions = [
        (num_code_lines(node), f"{module.name}:{node.lineno} {node.name}")
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, Function)
    ]
    classes = [
        (num_lines(node), f"{m.name}:{node.lineno} {node.name}") for m in modules for node in m.classes
    ]
    imports = [(len(imported_modules(module)), module.name) for module in modules]
    return [
        size_figure("longest function, without its docstring", functions, MAX_FUNCTION_LINES, "lines"),
        size_figure("longest class", classes, MAX_CLASS_LINES, "lines"),
        size_figure("most imports of a module", imports, MAX_IMPORTS, "modules"),
    ]


def size_figure(name: str, sizes: list[tuple[int, str]], limit: int, unit: str) -> Figure:
    """Build the figure of the largest size."""
    largest, place = max(sizes)
    misses = [f"{place}: {size} {unit}" for size, place in sorted(sizes, reverse=True) if size > limit]
    return Figure(name, f"{largest} {unit} ({place})", f"{limit}", misses, not misses)


def imported_modules(module: Module) -> set[str]:
    """Names of the modules that a module imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def docstring_figures(modules: list[Module]) -> list[Figure]:
    """Fraction of public modules, classes, functions and spec fields with documentation."""
    documented = documented_methods(modules)
    total, missing = 0, []
    for module in modules:
        for place, has_docstring in public_definitions(module, documented):
            total += 1
            missing += [] if has_docstring else [place]
    fields = [found for module in modules if "spec" in module.path.parts for found in spec_fields(module)]
    undocumented = [place for place, has_text in fields if not has_text]
    return [
        share_figure("public modules, classes and functions documented", total, missing),
        share_figure("spec fields documented", len(fields), undocumented),
    ]


def share_figure(name: str, total: int, missing: list[str]) -> Figure:
    """Build the figure of a fraction that must be 100%."""
    percent = 100 * (total - len(missing)) / total
    return Figure(name, f"{percent:.1f}% of {total}", "100%", missing, not missing)


def documented_methods(modules: list[Module]) -> dict[str, set[str]]:
    """Names of the documented methods of each class and of its bases, by the name of the class."""
    own: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    for module in modules:
        for node in module.classes:
            methods = {n.name for n in node.body if isinstance(n, Function) and ast.get_docstring(n)}
            own.setdefault(node.name, set()).update(methods)
            bases.setdefault(node.name, set()).update(base_name(base) for base in node.bases)

    def inherited(name: str, seen: frozenset[str]) -> set[str]:
        above = [inherited(base, seen | {name}) for base in bases.get(name, ()) if base not in seen]
        return own.get(name, set()).union(*above)

    return {name: inherited(name, frozenset()) for name in own}


def base_name(base: ast.expr) -> str:
    """Last part of the name of a base class."""
    while isinstance(base, ast.Subscript):
        base = base.value
    return base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")


_EXTERNAL_OVERRIDES = {"forward", "step"}
"""Methods that torch documents."""


def public_definitions(module: Module, documented: dict[str, set[str]]) -> Iterator[tuple[str, bool]]:
    """(place, documented) of a module and its public classes, functions and methods."""
    yield module.name, bool(ast.get_docstring(module.tree))
    for node in module.tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield f"{module.name}:{node.lineno} {node.name}", bool(ast.get_docstring(node))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield f"{module.name}:{node.lineno} {node.name}", bool(ast.get_docstring(node))
            for method in node.body:
                if isinstance(method, Function) and not method.name.startswith("_"):
                    known = method.name in documented[node.name] | _EXTERNAL_OVERRIDES
                    yield f"{module.name}:{method.lineno} {node.name}.{method.name}", known


def spec_fields(module: Module) -> Iterator[tuple[str, bool]]:
    """(place, documented) of the fields of spec models but for `type` and `kind`, which their class documents."""
    for node in module.classes:
        for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
            if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
                continue
            name = statement.target.id
            if (
                name.startswith("_")
                or name in ("type", "kind")
                or "ClassVar" in ast.unparse(statement.annotation)
            ):
                continue
            has_text = (
                isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            )
            yield f"{module.name}:{statement.lineno} {node.name}.{name}", has_text


def language_figure() -> Figure:
    """Words that codespell finds: misspelt ones, and those of docs/banned_words.txt."""
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", "-D", "-", "-D", "docs/banned_words.txt"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = done.stdout.splitlines()
    return Figure("banned or misspelt words", str(len(found)), "0", found, not found)


def startup_figures() -> list[Figure]:
    """Median seconds of short commands."""
    figures = []
    for arguments, limit in STARTUP_LIMITS.items():
        seconds = []
        for _ in range(STARTUP_RUNS):
            started = time.perf_counter()
            subprocess.run([RAYFUSE, *arguments.split()], check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
        median = statistics.median(seconds)
        figures.append(Figure(f"rayfuse {arguments}", f"{median:.3f} s", f"{limit} s", holds=median <= limit))
    return figures


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="list each place that misses a limit")
    shown = parser.parse_args()
    modules = load_modules()
    figures = [language_figure(), *docstring_figures(modules), *size_figures(modules), *startup_figures()]
    for figure in figures:
        state = "ok  " if figure.holds else "MISS"
        print(f"{state}  {figure.name:<50} {figure.value:<60} limit {figure.limit}")
        for place in figure.misses if shown.list else ():
            print(f"        {place}")
    sys.exit(not all(figure.holds for figure in figures))


if __name__ == "__main__":
    main()
