"""`rayfuse tune SWEEP`: search, leaderboard, report."""

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output
from rayfuse.cli.train import resume_rule

if TYPE_CHECKING:
    from rayfuse.tune.leaderboard import Leaderboard


@click.command()
@click.argument("spec", metavar="SWEEP")
@output.set_option
@click.option(
    "--resume/--fresh", default=None, help="Go on with an unfinished sweep of the same spec and data, or not."
)
@click.option(
    "--register-best",
    is_flag=True,
    help="Train the winner as its job says, and register it as candidate.",
)
@output.json_option
def tune(spec: str, overrides: tuple[str, ...], resume: bool | None, register_best: bool) -> None:
    """Search the space in the YAML file SWEEP with trials on Ray Tune, and rank them.

    A sweep that was stopped or killed is offered to be continued; without a terminal it is, unless --fresh is given.
    """
    from rayfuse.spec.space import load_sweep
    from rayfuse.tune.live import view
    from rayfuse.tune.sweep import run_sweep

    started = time.perf_counter()
    space = load_sweep(spec, overrides)
    board = run_sweep(
        space,
        resume_rule(resume, "sweep"),
        output.say,
        view(output.say, sys.stderr),
        spec,
        keep_finished=register_best and resume is not False,
    )
    data = board.data()
    output.say(_table(board))
    if register_best:
        data["registered"] = _register(board, spec)
    data["seconds"] = round(time.perf_counter() - started, 1)
    output.result(data, _summary(board, data))


def _register(board: "Leaderboard", spec: str) -> dict[str, Any]:
    """Train the winner fully, or go on with that, and register it."""
    from rayfuse.pipeline import train_and_register
    from rayfuse.train.progress import ProgressLine

    best = board.best()
    assert best is not None
    output.say(f"\ntraining the winner, trial {best.number}, as its job says")
    registered = train_and_register(
        board.winner(best), lambda run: True, output.say, ProgressLine(output.say), spec
    )
    board.folder.save(version=registered["version"])
    return registered


def _table(board: "Leaderboard") -> str:
    from rayfuse.tune.live import header, row

    return "\n" + output.table(header(board), [row(board, trial) for trial in board.ranked])


def _summary(board: "Leaderboard", data: dict[str, Any]) -> str:
    best = data["best"]
    lines = [
        f"best: trial {best['trial']}, {data['metric']} {best['value']:.4f} on the validation rows",
        f"pictures and leaderboard: {board.folder.url}",
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
