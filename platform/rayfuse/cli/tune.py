"""`rayfuse tune SWEEP`: hyperparameter search with a leaderboard."""

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output
from rayfuse.cli.train import resume_policy

if TYPE_CHECKING:
    from rayfuse.tune.leaderboard import Leaderboard


@click.command()
@click.argument("spec", metavar="SWEEP")
@output.set_option
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
    from rayfuse.spec.search_space import load_sweep
    from rayfuse.tune.console import create_reporter
    from rayfuse.tune.sweep import run_sweep

    started = time.perf_counter()
    space = load_sweep(spec, overrides)
    board = run_sweep(
        space,
        resume_policy(resume, "sweep"),
        output.echo,
        create_reporter(output.echo, sys.stderr),
        spec,
        reuse_finished=register_best and resume is not False,
    )
    data = board.to_dict()
    output.echo(_table(board))
    if register_best:
        data["registered"] = _register(board, spec)
    data["seconds"] = round(time.perf_counter() - started, 1)
    output.print_result(data, _summary(board, data))


def _register(board: "Leaderboard", spec: str) -> dict[str, Any]:
    """Train the best trial's job in full, or resume that, and register the model."""
    from rayfuse.pipeline import train_and_register
    from rayfuse.train.progress import ProgressLine

    best = board.best()
    assert best is not None
    output.echo(f"\ntraining the job of the best trial, {best.number}, in full")
    registered = train_and_register(
        board.winner(best), lambda run: True, output.echo, ProgressLine(output.echo), spec
    )
    board.folder.save(version=registered["version"])
    return registered


def _table(board: "Leaderboard") -> str:
    from rayfuse.tune.console import header, row

    return "\n" + output.table(header(board), [row(board, trial) for trial in board.ranked])


def _summary(board: "Leaderboard", data: dict[str, Any]) -> str:
    best = data["best"]
    lines = [
        f"best: trial {best['trial']}, {data['metric']} {best['value']:.4f} on the validation rows",
        f"plots and leaderboard: {board.folder.url}",
    ]
    registered = data.get("registered")
    if registered is None:
        lines.append(f"next: rayfuse train {board.folder.path('best.json')}")
    else:
        metrics = registered["metrics"]
        lines.append(f"{registered['evaluated_on']}: {data['metric']} {metrics[data['metric']]:.4f}")
        lines.append(f"registered {registered['model']} version {registered['version']} as candidate")
        lines.append(f"next: rayfuse models promote {registered['model']}")
    return "\n".join(lines)
