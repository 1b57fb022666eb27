"""`rayfuse train JOB`: train, evaluate, log and register a model."""

import sys
from collections.abc import Callable
from typing import Any

import click

from rayfuse.cli import output
from rayfuse.spec.quality import Quality


@click.command()
@click.argument("spec", metavar="JOB")
@output.target_options(required=False)
@output.set_option("train.epochs=3")
@output.quality_option
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
    spec: str,
    targets: tuple[str, ...],
    tasks: dict[str, str],
    exclude: tuple[str, ...],
    overrides: dict[str, Any],
    quality: Quality | None,
    resume: bool | None,
    profile: bool,
    profile_steps: int,
) -> None:
    """Train the job in the YAML file JOB and register the model as candidate.

    With --target, JOB is data instead of a YAML file, and the job is the one that `rayfuse init` writes. With --quality,
    options that the job leaves out are chosen by its data; they are printed, and stored with the run.

    If there is an unfinished run of the same job and data, the command asks whether to resume it; without a terminal it
    resumes it. --resume and --no-resume decide without asking.
    """
    from rayfuse.api import training
    from rayfuse.api.specs import check_is_spec

    steps = profile_steps if profile else 0
    job: Any = spec
    if targets:
        job = _draft(spec, targets, tasks=tasks, exclude=exclude, quality=quality, **overrides)
        quality, overrides = None, {}
    elif tasks or exclude:
        raise click.UsageError("--task and --exclude belong to --target, which names the column to predict")
    else:
        check_is_spec(spec)
    result = training.train(
        job, quality=quality, resume=resume_policy(resume), profile_steps=steps, **overrides
    )
    text = f"{result}\nnext: rayfuse models promote {result.model}"
    output.print_result(result.to_dict(), text)


def _draft(data: str, targets: tuple[str, ...], **options: Any) -> Any:
    """Return the job for data as it is, and print what each column is taken as."""
    from rayfuse.api import init

    drafted = init.draft(data, targets, **options)
    output.log(str(drafted))
    for warning in drafted.warnings:
        output.warn(warning)
    return drafted.job


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
