"""`rayfuse schema [KIND]`: the JSON Schema of a spec, for editors that complete and check YAML."""

import json

import click

from rayfuse.cli.output import json_option, result, table
from rayfuse.errors import SpecError


@click.command()
@click.argument("kind", required=False)
@json_option
def schema(kind: str | None) -> None:
    """Print the JSON Schema of a KIND of spec; without KIND, list the kinds.

    For completion in an editor: save it, and start the spec with
    `# yaml-language-server: $schema=FILE`.
    """
    from rayfuse.spec.load import KINDS, spec_class
    from rayfuse.spec.problems import nearest
    from rayfuse.spec.schema import json_schema, summary

    if kind is None:
        kinds = {name: summary(spec_class(name)) for name in KINDS}
        result({"kinds": kinds}, table(["kind", "what it says"], list(kinds.items())))
    elif kind not in KINDS:
        raise SpecError(f"schema {kind}: not a kind of spec; {nearest(kind, list(KINDS))}")
    else:
        content = json_schema(spec_class(kind))
        result(content, json.dumps(content, indent=2, ensure_ascii=False))
