"""The `rayfuse` command: one module per verb, imported only when that verb is used.

Expected errors become a message on standard error and an exit code: 0 done, 1 failed while running, 2 the spec or
the command is wrong, 3 a gate refused, 4 not reachable or not allowed, 130 interrupted. Anything else is a bug and
keeps its traceback.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import click
from click.exceptions import NoArgsIsHelpError, NoSuchCommand

from rayfuse import __version__, errors
from rayfuse.cli import extras, output

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("rayfuse.cli.demo:demo", "Make real data, train, gate, promote, serve, and ask over HTTP."),
    "train": ("rayfuse.cli.train:train", "Train a job and register the version as candidate."),
    "plan": ("rayfuse.cli.plan:plan", "Memory and time of a job, and the smallest layout that fits."),
    "tune": ("rayfuse.cli.tune:tune", "Search a sweep's space with trials, and rank them."),
    "evaluate": ("rayfuse.cli.evaluate:evaluate", "Metrics of a model, also for every subset of its inputs."),
    "predict": ("rayfuse.cli.predict:predict", "One answer, from the registry or from an endpoint."),
    "models": ("rayfuse.cli.models:models", "The registry: list, show, promote, rollback."),
    "serve": ("rayfuse.cli.serve:serve", "Endpoints: up, status, down."),
    "submit": ("rayfuse.cli.submit:submit", "Run a job, a sweep or a service on a cluster."),
    "jobs": ("rayfuse.cli.jobs:jobs", "What was submitted to a cluster: list, status, logs, stop."),
    "schema": ("rayfuse.cli.schema:schema", "JSON Schema of a spec, for editors."),
    "doctor": ("rayfuse.cli.doctor:doctor", "What is wrong with this machine."),
    "version": ("rayfuse.cli.version:version", "What is installed."),
}


class _Verbs(click.Group):
    """A group that knows its commands by VERBS and imports one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS:
            raise NoSuchCommand(args[0], possibilities=VERBS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rayfuse", message="%(prog)s %(version)s")
def rayfuse() -> None:
    """Fine-tune, register and serve models that read several kinds of input, on Ray.

    Every command takes --help and --json.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` where no arguments are given) and give back the exit code."""
    if "_RAYFUSE_COMPLETE" in os.environ:  # a shell asks what could come next
        rayfuse.main(prog_name="rayfuse")
    args = list(sys.argv[1:] if arguments is None else arguments)
    with output.json_only(for_good=arguments is None) if _wants_json(args) else nullcontext():
        try:
            return _run(args)
        except BrokenPipeError:
            if output.reader_is_gone():
                return 1
            raise


def _wants_json(args: list[str]) -> bool:
    """Asked before parsing, so that a wrong option is reported as JSON too."""
    options = args[: args.index("--")] if "--" in args else args
    return "--json" in options and not {"-h", "--help"} & set(options)


def _run(args: list[str]) -> int:
    try:
        with rayfuse.make_context("rayfuse", args) as context:
            rayfuse.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except (*errors.STOPS, click.Abort):
        return output.fail("Interrupted", "interrupted", errors.Interrupted.exit_code)
    except click.ClickException as error:
        return _fail_click(error)
    except errors.RayfuseError as error:
        return output.fail(_name(error), str(error), error.exit_code)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the traceback is shown
        return _fail_unexpected(error, args)
    return 0


def _fail_click(error: click.ClickException) -> int:
    message = error.format_message()
    if isinstance(error, NoArgsIsHelpError):
        return output.fail("UsageError", "no command given", error.exit_code, shown=message)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        message = f"{message}\nTry `{error.ctx.command_path} --help`."
    return output.fail(type(error).__name__, message, error.exit_code)


def _fail_unexpected(error: Exception, args: list[str]) -> int:
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.partition(".")[0]
        remedy = extras.remedy(module, verb=args[0])
        if remedy:
            message = f"`rayfuse {args[0]}` needs {module}, which is not installed; {remedy}"
            return output.fail("ModuleNotFoundError", message, errors.SpecError.exit_code)
    import traceback

    trace = "".join(traceback.format_exception(error))
    return output.fail(type(error).__name__, str(error), errors.RayfuseError.exit_code, shown=trace)


def _name(error: errors.RayfuseError) -> str:
    """Ray raises errors of its workers as a class of its own that also inherits from ours."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
