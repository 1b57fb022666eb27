"""Plots of a sweep: one per searched parameter, with the metric of each trial over its value."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.evaluation.plots import BLUE, GRAY, ORANGE, despine, new_figure
from rayfuse.spec.search_space import format_value
from rayfuse.spec.sweep import Parameter
from rayfuse.tuning.leaderboard import Leaderboard
from rayfuse.tuning.trials import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_JITTER = 0.12


def save_plots(folder: Path, board: Leaderboard) -> list[Path]:
    """Draw FOLDER/PARAMETER.png for each searched parameter that a trial with a value had; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    scores = {t.number: value for t in board.ranked if (value := board.value(t)) is not None}
    for path, parameter in board.space.sweep.space.items():
        trials = [t for t in board.ranked if path in t.values and t.number in scores]
        if trials:
            paths.append(folder / f"{path}.png")
            draw_parameter(paths[-1], board, path, parameter, trials, scores)
    return paths


def draw_parameter(
    file: Path,
    board: Leaderboard,
    path: str,
    parameter: Parameter,
    trials: list[Trial],
    scores: dict[int, float],
) -> None:
    """Draw the metric of each trial over its value of one parameter, with the best trial as a star."""
    figure = new_figure(8.5, 4.2)
    axes = figure.subplots()
    positions = _x_positions(axes, parameter, path, trials)
    best = board.best()
    for finished, label in ((True, "finished"), (False, "stopped or failed")):
        chosen = [i for i, t in enumerate(trials) if t is not best and (t.state == "finished") == finished]
        if chosen:
            values = [scores[trials[i].number] for i in chosen]
            color = BLUE if finished else GRAY
            axes.scatter([positions[i] for i in chosen], values, color=color, alpha=0.75, label=label)
    if best is not None and best in trials:
        position = positions[trials.index(best)]
        axes.scatter(
            [position], [scores[best.number]], color=ORANGE, marker="*", s=190, zorder=3, label="best"
        )
    better = "higher" if board.space.mode == "max" else "lower"
    axes.set_xlabel(path)
    axes.set_ylabel(f"{board.space.sweep.metric}\non validation rows ({better} is better)")
    axes.set_title(f"{board.space.sweep.name}: effect of {path}", fontsize=11)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    despine(axes, grid="both")
    figure.savefig(file)


def _x_positions(axes: "Axes", parameter: Parameter, path: str, trials: list[Trial]) -> list[float]:
    """Return where each trial stands on the axis: at its number, or in the column of its choice."""
    if parameter.values is None:
        if parameter.loguniform is not None:
            axes.set_xscale("log")
        if parameter.int is not None:
            axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
        return [float(trial.values[path]) for trial in trials]
    axes.set_xticks(range(len(parameter.values)), [_wrap_label(value) for value in parameter.values])
    axes.set_xlim(-0.5, len(parameter.values) - 0.5)
    counts: dict[int, int] = {}
    positions = []
    for trial in trials:
        column = parameter.values.index(trial.values[path])
        counts[column] = counts.get(column, 0) + 1
        # Equal values would hide each other, so they alternate to the right and the left.
        side = (counts[column] // 2) * (1 if counts[column] % 2 else -1)
        positions.append(column + max(-0.4, min(0.4, _JITTER * side / 2)))
    return positions


def _wrap_label(value: Any) -> str:
    return format_value(value).strip("{}").replace(" ", "\n")
