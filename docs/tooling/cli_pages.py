"""The page of the command line, from its click commands."""

import re
from collections.abc import Iterator

import click
from page import Page, table

from rayfuse import errors
from rayfuse.cli import rayfuse

PATH = "reference/cli.md"

_INTRODUCTION = """# CLI reference

Made from `rayfuse --help`. Every command has `--help`, and nearly all have `--json`: the last line on standard output is
then one JSON object, and all other output goes to standard error.
"""


def make_page() -> Page:
    """Return the page."""
    sections = [_section(words, command) for words, command in commands()]
    return Page(PATH, "CLI", "\n".join([_INTRODUCTION, _exit_codes(), *sections]))


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command and subcommand, each after the words that call it."""
    yield from _below(("rayfuse",), rayfuse)


def _below(words: tuple[str, ...], group: click.Group) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*words, name), command
        if isinstance(command, click.Group):
            yield from _below((*words, name), command)


def command_id(words: tuple[str, ...]) -> str:
    """Return the anchor of a command, such as `rayfuse-models-promote`."""
    return "-".join(words)


def options(command: click.Command) -> list[click.Option]:
    """Return the options of a command, without --help."""
    return [option for option in command.params if isinstance(option, click.Option)]


def option_id(words: tuple[str, ...], option: click.Option) -> str:
    """Return the anchor of an option, such as `rayfuse-models-promote.min`."""
    return f"{command_id(words)}.{option.opts[0].lstrip('-')}"


def _section(words: tuple[str, ...], command: click.Command) -> str:
    context = click.Context(command, info_name=words[-1], parent=_parent(words[:-1]))
    usage = " ".join([*words, *command.collect_usage_pieces(context)])
    return "\n".join(
        [
            f"{'#' * min(len(words), 3)} `{' '.join(words)}` {{ #{command_id(words)} }}\n",
            f"```text\n{usage}\n```\n",
            f"{_help(command)}\n",
            _subcommands(words, command),
            *(_option(words, option, context) for option in options(command)),
        ]
    )


def _subcommands(words: tuple[str, ...], command: click.Command) -> str:
    if not isinstance(command, click.Group):
        return ""
    rows = [
        [f"[`{name}`](#{command_id((*words, name))})", _code_in(found.get_short_help_str(200))]
        for name, found in command.commands.items()
    ]
    return table(["command", "action"], rows)


def _parent(words: tuple[str, ...]) -> click.Context | None:
    context = None
    for word in words:
        context = click.Context(rayfuse, info_name=word, parent=context)
    return context


def _help(command: click.Command) -> str:
    paragraphs = [" ".join(text.split()) for text in (command.help or "").split("\n\n")]
    return "\n\n".join(_code_in(text) for text in paragraphs)


def _option(words: tuple[str, ...], option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    assert record is not None, option.name
    names, text = record
    text, _, default = text.partition("  [")
    notes = f" *{default.rstrip(']')}*" if default else ""
    anchor = option_id(words, option)
    return f"[`{names}`](#{anchor}){{ #{anchor} .key }}{notes}\n:   {_code_in(text)}\n"


def _code_in(text: str) -> str:
    """Mark options, and values in single quotes, as code."""
    text = re.sub(r"'(\{.*?\})'", r"`\1`", text)
    return re.sub(r"(?<![`\w-])(--[a-z][a-z-]*)", r"`\1`", text)


def _exit_codes() -> str:
    rows = [
        [str(code), meaning]
        for code, meaning in {
            0: "success",
            errors.RayfuseError.exit_code: "failed while running",
            errors.SpecError.exit_code: "invalid spec or command line",
            errors.GateRejectedError.exit_code: "rejected by a gate",
            errors.UnavailableError.exit_code: "service unavailable, or access denied",
            errors.RunInterruptedError.exit_code: "interrupted",
        }.items()
    ]
    after = "With `--wait` and `--follow`, those of the submitted job."
    return f"## Exit codes\n\n{table(['code', 'meaning'], rows)}\n{after}\n"
