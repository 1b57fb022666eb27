"""The `rayfuse` command, with a module per subcommand that is imported only when it is used.

Exit codes: 0 success, 1 failed while running, 2 invalid spec or command line, 3 rejected by a gate, 4 service
unavailable or access denied, 130 interrupted (143 by SIGTERM, 129 by SIGHUP). Expected errors are one message on
standard error; any other exception is a bug and keeps its traceback.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import click
from click.exceptions import NoArgsIsHelpError, NoSuchCommand

from rayfuse import __version__, console, errors, extras, signals, text_encoding
from rayfuse.cli import output

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("rayfuse.cli.demo:demo", "Run the whole workflow on this machine, from data to an endpoint."),
    "init": ("rayfuse.cli.init:init", "Write a job for data as it is, from its columns."),
    "train": ("rayfuse.cli.train:train", "Train a job and register the model as candidate."),
    "plan": ("rayfuse.cli.plan:plan", "Estimate memory and time of a job before it starts."),
    "tune": ("rayfuse.cli.tune:tune", "Run a hyperparameter sweep and rank its trials."),
    "evaluate": ("rayfuse.cli.evaluate:evaluate", "Evaluate a model with every subset of its inputs."),
    "predict": ("rayfuse.cli.predict:predict", "Predict with a model or an endpoint."),
    "index": ("rayfuse.cli.indexing:index", "Embed passages with a retrieval model, for searches."),
    "search": ("rayfuse.cli.search:search", "Find the passages of an index that answer a query."),
    "export": (
        "rayfuse.cli.export:export",
        "Export a model to ONNX, or its encoders to PEFT or transformers.",
    ),
    "models": (
        "rayfuse.cli.models:models",
        "List, show, promote and roll back registered models; register voices.",
    ),
    "serve": ("rayfuse.cli.serve:serve", "Start, list and stop endpoints."),
    "submit": ("rayfuse.cli.submit:submit", "Submit a job, sweep or service to a cluster."),
    "jobs": ("rayfuse.cli.jobs:jobs", "List, show, follow and stop submitted jobs."),
    "schema": ("rayfuse.cli.schema:schema", "Print the JSON Schema of a spec, for editors."),
    "doctor": ("rayfuse.cli.doctor:doctor", "Check this machine and its configuration."),
    "version": ("rayfuse.cli.version:version", "Print the versions of Rayfuse and its dependencies."),
}
"""Import path and short help by subcommand."""


class _CommandGroup(click.Group):
    """A group that imports a command of COMMANDS only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS:
            raise NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=_CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rayfuse", message="%(prog)s %(version)s")
def rayfuse() -> None:
    """Fine-tune, register and serve multimodal models on Ray.

    Every command has the options --help and --json.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, `sys.argv` by default, and return the exit code."""
    if "_RAYFUSE_COMPLETE" in os.environ:  # shell completion
        rayfuse.main(prog_name="rayfuse")
    text_encoding.escape_unencodable_output()
    args = list(sys.argv[1:] if arguments is None else arguments)
    with output.reserve_stdout_for_json(permanent=arguments is None) if _wants_json(args) else nullcontext():
        try:
            return _run(args)
        except BrokenPipeError:
            if output.handle_broken_pipe():
                return 1
            raise


def _wants_json(args: list[str]) -> bool:
    """Find `--json` before parsing, so that an invalid option is reported as JSON too."""
    options = args[: args.index("--")] if "--" in args else args
    return "--json" in options and not {"-h", "--help"} & set(options)


def _run(args: list[str]) -> int:
    try:
        with (
            signals.termination_as_interrupt(),
            console.without_library_warnings(),
            console.log_to_user(),
            rayfuse.make_context("rayfuse", args) as context,
        ):
            text_encoding.check_encoding()
            rayfuse.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except (*errors.INTERRUPT_EXCEPTIONS, click.Abort) as error:
        return output.report_error("RunInterruptedError", "interrupted", 128 + signals.signum_of(error))
    except click.ClickException as error:
        return _fail_click(error)
    except errors.RayfuseError as error:
        return output.report_error(_error_type(error), str(error), error.exit_code)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the traceback is shown
        return _fail_unexpected(error, args)
    return 0


def _fail_click(error: click.ClickException) -> int:
    message = error.format_message()
    if isinstance(error, NoArgsIsHelpError):
        return output.report_error("UsageError", "no command given", error.exit_code, text=message)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        message = f"{message}\nTry `{error.ctx.command_path} --help`."
    return output.report_error(type(error).__name__, message, error.exit_code)


def _fail_unexpected(error: Exception, args: list[str]) -> int:
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.partition(".")[0]
        remedy = extras.remedy(module, command=args[0])
        if remedy:
            message = f"`rayfuse {args[0]}` requires {module}, which is not installed; {remedy}"
            return output.report_error("ModuleNotFoundError", message, errors.SpecError.exit_code)
    import traceback

    trace = "".join(traceback.format_exception(error))
    return output.report_error(type(error).__name__, str(error), errors.RayfuseError.exit_code, text=trace)


def _error_type(error: errors.RayfuseError) -> str:
    """Return the error's class in `rayfuse.errors`; Ray raises worker errors as a subclass."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
