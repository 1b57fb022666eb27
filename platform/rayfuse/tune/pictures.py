"""One picture per searched parameter: what each value was worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.spec.space import show
from rayfuse.spec.sweep import Parameter
from rayfuse.tune.leaderboard import Leaderboard
from rayfuse.tune.trials import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _GRAY = "#2f6db3", "#d9822b", "#8a8f98"
_DPI = 120
_SPREAD = 0.12


def save_pictures(folder: Path, board: Leaderboard) -> list[Path]:
    """Draw FOLDER/PARAMETER.png for every searched parameter that any trial with a value had; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for path, parameter in board.space.sweep.space.items():
        scores = {t.number: value for t in board.ranked if (value := board.value(t)) is not None}
        trials = [t for t in board.ranked if path in t.values and t.number in scores]
        if trials:
            paths.append(folder / f"{path}.png")
            draw_parameter(paths[-1], board, path, parameter, trials, scores)
    return paths


def draw_parameter(
    picture: Path,
    board: Leaderboard,
    path: str,
    parameter: Parameter,
    trials: list[Trial],
    scores: dict[int, float],
) -> None:
    """The metric of each trial over its value of one parameter; the best trial stands out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4.2), layout="constrained", dpi=_DPI)
    axes = figure.subplots()
    places = _places(axes, parameter, path, trials)
    best = board.best()
    for finished, label in ((True, "trained to the end"), (False, "stopped or failed")):
        chosen = [i for i, t in enumerate(trials) if t is not best and (t.state == "finished") == finished]
        if chosen:
            values = [scores[trials[i].number] for i in chosen]
            colour = _BLUE if finished else _GRAY
            axes.scatter([places[i] for i in chosen], values, color=colour, alpha=0.75, label=label)
    if best is not None and best in trials:
        place = places[trials.index(best)]
        axes.scatter([place], [scores[best.number]], color=_ORANGE, marker="*", s=190, zorder=3, label="best")
    better = "higher" if board.space.mode == "max" else "lower"
    axes.set_xlabel(path)
    axes.set_ylabel(f"{board.space.sweep.metric}\non validation rows ({better} is better)")
    axes.set_title(f"{board.space.sweep.name}: what {path} is worth", fontsize=11)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.savefig(picture)


def _places(axes: "Axes", parameter: Parameter, path: str, trials: list[Trial]) -> list[float]:
    """Where each trial stands on the axis: at its number, or in the column of its value."""
    if parameter.values is None:
        if parameter.loguniform is not None:
            axes.set_xscale("log")
        if parameter.int is not None:
            axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
        return [float(trial.values[path]) for trial in trials]
    axes.set_xticks(range(len(parameter.values)), [_wrapped(value) for value in parameter.values])
    axes.set_xlim(-0.5, len(parameter.values) - 0.5)
    seen: dict[int, int] = {}
    places = []
    for trial in trials:
        column = parameter.values.index(trial.values[path])
        seen[column] = seen.get(column, 0) + 1
        # Equal values would hide each other: to the right and the left in turn.
        side = (seen[column] // 2) * (1 if seen[column] % 2 else -1)
        places.append(column + max(-0.4, min(0.4, _SPREAD * side / 2)))
    return places


def _wrapped(value: Any) -> str:
    return show(value).strip("{}").replace(" ", "\n")
