"""`rayfuse train JOB`: train, evaluate, log and register a model."""

import sys
from collections.abc import Callable
from typing import Any

import click

from rayfuse.cli import output


@click.command()
@click.argument("spec", metavar="JOB")
@output.set_option("train.epochs=3")
@click.option(
    "--resume/--no-resume",
    default=None,
    help="Whether to resume an unfinished run of the same job and data.",
)
@click.option(
    "--profile", is_flag=True, help="Profile some steps: a trace for Perfetto and a table of operators."
)
@click.option(
    "--profile-steps",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of steps to profile.",
)
@output.json_option
def train(
    spec: str, overrides: dict[str, Any], resume: bool | None, profile: bool, profile_steps: int
) -> None:
    """Train the job in the YAML file JOB and register the model as candidate.

    If there is an unfinished run of the same job and data, the command asks whether to resume it; without a terminal it
    resumes it. --resume and --no-resume decide without asking.
    """
    from rayfuse.api import training

    steps = profile_steps if profile else 0
    result = training.train(spec, resume=resume_policy(resume), profile_steps=steps, **overrides)
    text = f"{result}\nnext: rayfuse models promote {result.model}"
    output.print_result(result.to_dict(), text)


def resume_policy(resume: bool | None, what: str = "run") -> bool | Callable[[str], bool]:
    """Return `resume`; where it is None, a function that asks the user whether to resume an unfinished run or sweep.

    Without a terminal, it answers that it should be resumed.
    """

    def confirm(url: str) -> bool:
        if not sys.stdin.isatty() or output.is_json():
            output.log(f"resuming the unfinished {what} {url}; use --no-resume to start a new one")
            return True
        return click.confirm(f"Found an unfinished {what}: {url}\nResume it?", default=True)

    return confirm if resume is None else resume
