"""`rayfuse tune SWEEP`: hyperparameter search with a leaderboard."""

from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output
from rayfuse.cli.train import resume_policy

if TYPE_CHECKING:
    from rayfuse.api.tuning import SweepResult


@click.command()
@click.argument("spec", metavar="SWEEP")
@output.set_option("search.trials=20")
@click.option(
    "--resume/--no-resume",
    default=None,
    help="Resume an unfinished sweep of the same spec and data, or start a new one.",
)
@click.option(
    "--register-best",
    is_flag=True,
    help="Train the best trial's job in full, and register the model as candidate.",
)
@output.json_option
def tune(spec: str, overrides: dict[str, Any], resume: bool | None, register_best: bool) -> None:
    """Run the trials of the sweep in the YAML file SWEEP on Ray Tune, and rank them.

    An interrupted sweep is resumed after a prompt; without a terminal it is resumed unless --no-resume is given.
    """
    from rayfuse.api import tuning

    result = tuning.tune(
        spec, resume=resume_policy(resume, "sweep"), register_best=register_best, **overrides
    )
    output.print_result(result.to_dict(), f"\n{result}\nnext: {_next_command(result)}")


def _next_command(result: "SweepResult") -> str:
    if result.registered is None:
        return f"rayfuse train {result.folder}/best.json"
    return f"rayfuse models promote {result.registered.model}"
