"""`rayfuse schema [KIND]`: the JSON Schema of a spec or a custom part, for editors."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from rayfuse.cli.output import json_option, print_result
from rayfuse.errors import SpecError
from rayfuse.formatting import table


@click.command()
@click.argument("kind", required=False)
@json_option
def schema(kind: str | None) -> None:
    """Print the JSON Schema of a KIND of spec; without KIND, list the kinds.

    KIND may also be the import path of a custom part, as in my_package.module:MyFusion.

    For completion in an editor: save it, and start the spec with
    `# yaml-language-server: $schema=FILE`.
    """
    # Pydantic searches all installed packages for plugins, which takes a tenth of this command's time.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    with _without_gc():
        _print_schema(kind)


@contextmanager
def _without_gc() -> Iterator[None]:
    """Collect no garbage: a schema frees next to none of its objects, and collections take a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _print_schema(kind: str | None) -> None:
    from pydantic_core import to_json  # json with an indent is a tenth of the time slower

    from rayfuse.spec.error_messages import suggest_nearest
    from rayfuse.spec.kinds import KINDS, spec_class
    from rayfuse.spec.schema import custom_part_schema, json_schema, summary

    if kind is None:
        kinds = {name: summary(spec_class(name)) for name in KINDS}
        print_result({"kinds": kinds}, table(["kind", "describes"], list(kinds.items())))
        return
    if ":" in kind:
        content = custom_part_schema(kind)
    elif kind in KINDS:
        content = json_schema(spec_class(kind))
    else:
        raise SpecError(f"schema {kind}: not a kind of spec; {suggest_nearest(kind, list(KINDS))}")
    print_result(content, to_json(content, indent=2).decode())
