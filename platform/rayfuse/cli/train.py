"""`rayfuse train JOB`: train, evaluate, log and register a version."""

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output
from rayfuse.cli.models import by_inputs_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayfuse.train.runs import RunFolder


@click.command()
@click.argument("spec", metavar="JOB")
@output.set_option
@click.option(
    "--resume/--fresh", default=None, help="Go on with an unfinished run of the same job and data, or not."
)
@click.option(
    "--profile", is_flag=True, help="Look closely at some steps: a trace for Perfetto, and a table."
)
@click.option(
    "--profile-steps",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How many steps that is.",
)
@output.json_option
def train(
    spec: str, overrides: tuple[str, ...], resume: bool | None, profile: bool, profile_steps: int
) -> None:
    """Train the job in the YAML file JOB and register the version as candidate.

    A run that was stopped is offered to be continued; without a terminal it is, unless --fresh is given.
    """
    from rayfuse.pipeline import train_and_register
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import load_spec
    from rayfuse.train.progress import ProgressLine

    started = time.perf_counter()
    job = load_spec(spec, Job, overrides)
    line = ProgressLine(output.say)
    steps = profile_steps if profile else 0
    data = train_and_register(job, resume_rule(resume), output.say, line, spec, steps)
    data["seconds"] = round(time.perf_counter() - started, 1)
    output.result(data, _summary(data))


def resume_rule(resume: bool | None, what: str = "run") -> "Callable[[RunFolder], bool]":
    """Whether to continue what is unfinished: as told, else as somebody answers; where nobody is there, nothing
    that was done is thrown away."""

    def ask(run: "RunFolder") -> bool:
        if not sys.stdin.isatty() or output.is_json():
            output.say(f"going on with the unfinished {what} {run.url}; --fresh starts anew")
            return True
        return click.confirm(f"An unfinished {what} is there: {run.url}\nGo on with it?", default=True)

    return ask if resume is None else lambda run: bool(resume)


def _summary(data: dict[str, Any]) -> str:
    from rayfuse.train.progress import without_averages

    metrics = "  ".join(f"{name} {value:.4f}" for name, value in without_averages(data["metrics"]).items())
    return (
        f"{data['evaluated_on']}: {metrics}\n{by_inputs_table(data['by_inputs'])}\n"
        f"registered {data['model']} version {data['version']} as candidate in {data['seconds']:.0f} s\n"
        f"next: rayfuse models promote {data['model']}"
    )
