"""`rayfuse train JOB`: train, evaluate, log and register a model."""

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
    resumes it. --resume and --no-resume skip the question.
    """
    from rayfuse.pipeline import train_and_register
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import load_spec
    from rayfuse.train.progress import ProgressLine

    started = time.perf_counter()
    job = load_spec(spec, Job, overrides)
    line = ProgressLine(output.log)
    steps = profile_steps if profile else 0
    data = train_and_register(job, resume_policy(resume), output.log, line, spec, steps)
    data["seconds"] = round(time.perf_counter() - started, 1)
    output.print_result(data, format_summary(data))


def resume_policy(resume: bool | None, what: str = "run") -> "Callable[[RunFolder], bool]":
    """Return a function that decides whether to resume an unfinished run or sweep (`what`).

    It returns `resume`; where that is None it asks the user, and without a terminal returns True.
    """

    def confirm(run: "RunFolder") -> bool:
        if not sys.stdin.isatty() or output.is_json():
            output.log(f"resuming the unfinished {what} {run.url}; use --no-resume to start a new one")
            return True
        return click.confirm(f"Found an unfinished {what}: {run.url}\nResume it?", default=True)

    return confirm if resume is None else lambda run: bool(resume)


def format_summary(data: dict[str, Any]) -> str:
    """Format the result of a training run: metrics, by inputs, and the registered version."""
    from rayfuse.train.progress import without_averages

    metrics = "  ".join(f"{name} {value:.4f}" for name, value in without_averages(data["metrics"]).items())
    return (
        f"{data['evaluated_on']}: {metrics}\n{by_inputs_table(data['by_inputs'])}\n"
        f"registered {data['model']} version {data['version']} as candidate in {data['seconds']:.0f} s\n"
        f"next: rayfuse models promote {data['model']}"
    )
