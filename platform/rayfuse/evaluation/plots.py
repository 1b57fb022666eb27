"""Plots of a run for MLflow: confusion matrices, learning curves, and the value of each subset of the inputs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rayfuse.formatting import truncate_middle
from rayfuse.spec.tasks import Mode

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GRAY, DARK = "#2f6db3", "#d9822b", "#8a8f98", "#1c2733"
"""Colors of all plots."""
DPI = 120
"""Dots per inch of all plots."""
_MAX_ANNOTATED_CLASSES = 25
_MAX_TICK_LABELS = 60
_MAX_CONFUSION_CLASSES = 100
"""Of more classes, a confusion matrix shows those with the most confused rows."""
_MAX_LABEL_LENGTH = 24
_MAX_BAR_LABEL_LENGTH = 40
"""Longer names of bars would leave no room for the bars."""
_SMOOTHED_POINTS = 60
"""Longer training curves are smoothed."""

Curve = list[tuple[int, float]]
"""Values of a metric as (step, value), by step."""


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size in inches, in the style of all plots."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def despine(axes: "Axes", grid: Literal["x", "both"] | None = None) -> None:
    """Hide the upper and right edges of the frame; draw a light grid behind the data if `grid` names its axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, alpha=0.3)


def save_plots(
    folder: Path,
    evaluation: Mapping[str, Any],
    records: Iterable[Mapping[str, Any]],
    metric: str,
    mode: Mode = "max",
) -> list[Path]:
    """Draw all plots of a run into `folder`; return their paths.

    `evaluation`: {"split", "metrics", "by_inputs", "details", "explain"}; `records`: the run's journal; `metric` and
    `mode`: the job's selection metric, and whether higher values of it are better.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [*_save_evaluation_plots(folder, evaluation, metric, mode), *_save_curves(folder, records, metric)]


def _save_evaluation_plots(
    folder: Path, evaluation: Mapping[str, Any], metric: str, mode: Mode
) -> Iterable[Path]:
    split = evaluation.get("split", "test")
    for task, found in evaluation.get("details", {}).items():
        if "confusion" in found:
            path = folder / f"confusion_{task}.png"
            draw_confusion(path, found["confusion"], found["classes"], f"{task}: {split} rows by class")
            yield path
    if len(evaluation.get("by_inputs", {})) > 1:
        path = folder / "by_inputs.png"
        draw_by_inputs(path, evaluation["by_inputs"], metric, mode, split)
        yield path
    for task, found in evaluation.get("explain", {}).items():
        if len(found["contributions"]) > 1:
            path = folder / f"contributions_{task}.png"
            draw_importance(path, task, found, split)
            yield path


def _save_curves(folder: Path, records: Iterable[Mapping[str, Any]], metric: str) -> Iterable[Path]:
    curves = metric_curves(records)
    if curves:
        path = folder / "learning_curves.png"
        draw_curves(path, curves, metric)
        yield path
    if _THROUGHPUT_METRICS[0][0] in curves:
        path = folder / "throughput.png"
        draw_throughput(path, curves)
        yield path


def draw_confusion(
    path: Path, cells: Sequence[tuple[int, int, int]], classes: Sequence[str], title: str
) -> None:
    """Draw a confusion matrix: color is the fraction of a true class (row), numbers are counts of rows.

    cells: positions of the true and the predicted class, and number of rows, of the pairs that occur. Of many classes,
    only those with the most confused rows are drawn, and the title has the number of the others.
    """
    from matplotlib.colors import Normalize, PowerNorm

    shown, table, fractions, accuracy = _confusion_of_most_confused(cells, len(classes))
    title = f"{title}\n{accuracy}"
    if len(shown) < len(classes):
        title += f"; the {len(shown)} most confused of {len(classes)} classes"
    names = [truncate_middle(classes[index], _MAX_LABEL_LENGTH) for index in shown]
    annotated = len(names) <= _MAX_ANNOTATED_CLASSES
    cell = 0.62 if len(names) <= 12 else 0.42 if annotated else 0.22
    longest = max(map(len, names))
    side = max(2.2, cell * len(names)) + 0.085 * longest
    figure = new_figure(side + 2.2, side + 1.4)
    axes = figure.subplots()
    # Without numbers in the cells, rare errors must be visible by their color.
    norm = Normalize(0, 1) if annotated else PowerNorm(0.5, 0, 1)
    image = axes.imshow(fractions, cmap="Blues", norm=norm)
    figure.colorbar(image, ax=axes, label="fraction of the true class", fraction=0.046, pad=0.03)
    step = -(-len(names) // _MAX_TICK_LABELS)
    size, rotation = 9 if annotated else 7, 90 if longest > 3 else 0
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=rotation, fontsize=size)
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=11)
    if annotated:
        _annotate_cells(axes, table, fractions, size=9 if len(names) <= 12 else 7)
    figure.savefig(path)


def _confusion_of_most_confused(
    cells: Sequence[tuple[int, int, int]], num_classes: int
) -> "tuple[np.ndarray, np.ndarray, np.ndarray, str]":
    """Return the classes to draw, in their order, their counts and fractions, (classes, classes), and the accuracy as text."""
    import numpy as np

    true, predicted, counts = np.asarray(cells, dtype=int).reshape(-1, 3).T
    errors = np.where(true == predicted, 0, counts)
    confused = np.bincount(true, errors, num_classes) + np.bincount(predicted, errors, num_classes)
    shown = np.sort(np.argsort(-confused, kind="stable")[:_MAX_CONFUSION_CLASSES])
    position = np.full(num_classes, -1)
    position[shown] = np.arange(len(shown))
    drawn = (position[true] >= 0) & (position[predicted] >= 0)
    table = np.zeros((len(shown), len(shown)))
    table[position[true[drawn]], position[predicted[drawn]]] = counts[drawn]
    sums = np.bincount(true, counts, num_classes)[shown, None]
    fractions = np.divide(table, sums, out=np.zeros_like(table), where=sums > 0)
    total, right = int(counts.sum()), int(counts.sum() - errors.sum())
    return shown, table, fractions, f"{right:,} of {total:,} correct ({right / max(1, total):.1%})"


def _annotate_cells(axes: "Axes", table: "np.ndarray", fractions: "np.ndarray", size: int) -> None:
    for i, row in enumerate(table):
        for j, count in enumerate(row):
            if count:
                color = "white" if fractions[i, j] > 0.55 else DARK
                axes.text(j, i, f"{int(count)}", ha="center", va="center", fontsize=size, color=color)


def draw_by_inputs(
    path: Path, by_inputs: Mapping[str, Mapping[str, float]], metric: str, mode: Mode, split: str
) -> None:
    """Draw a bar for every subset of the inputs, the best first; the one of all inputs is blue."""
    found = [(name, metrics[metric]) for name, metrics in by_inputs.items() if metric in metrics]
    found.sort(key=lambda pair: pair[1], reverse=mode == "min")  # the last is drawn on top
    all_inputs = max((name for name, _ in found), key=lambda name: name.count("+"))
    values = [value for _, value in found]
    labels = [f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}" for value in values]
    names = [_brief_subset(name, all_inputs) for name, _ in found]
    figure, axes = _bars(names, values, labels)
    for bar, (name, _) in zip(axes.patches, found, strict=True):
        bar.set_color(BLUE if name == all_inputs else GRAY)
    top = max((abs(value) for value in values), default=1.0) or 1.0
    bounded = mode == "max" and all(0 <= value <= 1 for value in values)
    axes.set_xlim(min(0.0, *values) * 1.15, 1.12 if bounded else top * 1.18)
    axes.set_xlabel(f"{metric} on the {split} rows ({'higher' if mode == 'max' else 'lower'} is better)")
    axes.set_title("Quality by subset of the inputs", fontsize=11)
    figure.savefig(path)


def _brief_subset(name: str, all_inputs: str) -> str:
    """Return the name of a subset of many inputs by those that it lacks."""
    inputs = name.split("+")
    absent = [one for one in all_inputs.split("+") if one not in inputs]
    brief = f"without {', '.join(absent)}" if absent else "all inputs"
    return name if len(name) <= max(len(brief), _MAX_BAR_LABEL_LENGTH) else brief


def draw_importance(path: Path, task: str, found: Mapping[str, Any], split: str) -> None:
    """Draw a bar for every input: its mean absolute Shapley value.

    `found`: an entry of `rayfuse.model.explain.input_importance`.
    """
    ordered = sorted(found["contributions"].items(), key=lambda pair: pair[1])  # the last is drawn on top
    values = [value for _, value in ordered]
    figure, axes = _bars([name for name, _ in ordered], values, [f"{value:.3g}" for value in values])
    axes.set_xlim(0, 1.15 * max(values) or 1.0)
    axes.set_xlabel(f"mean |Shapley value| for the {found['score']}, {split} rows with the input")
    axes.set_title(f"{task}: contribution of each input (Shapley values)", fontsize=11)
    figure.savefig(path)


def _bars(names: Sequence[str], values: Sequence[float], labels: Sequence[str]) -> "tuple[Figure, Axes]":
    figure = new_figure(7.5, max(2.2, 0.34 * len(names) + 1.3))
    axes = figure.subplots()
    shown = [truncate_middle(name, _MAX_BAR_LABEL_LENGTH) for name in names]
    bars = axes.barh(range(len(names)), values, tick_label=shown, color=BLUE, height=0.7)
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    despine(axes, grid="x")
    return figure, axes


def metric_curves(records: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """Return the curve of each training and validation metric of a journal; of one step the last value counts."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in (record.get("metrics") or {}).items():
            if name.startswith(("train/", "validation/")) and isinstance(value, (int, float)):
                found.setdefault(name, {})[int(record.get("step") or 0)] = float(value)
    return {name: sorted(values.items()) for name, values in found.items()}


def draw_curves(path: Path, curves: Mapping[str, Curve], metric: str) -> None:
    """Draw training and validation loss, and below them the job's selection metric."""
    selection = curves.get(f"validation/{metric}", [])
    rows = 2 if selection and metric != "loss" else 1
    figure = new_figure(7.5, 3.0 * rows + 0.6)
    panels = _stack(figure, rows)
    _draw_loss(panels[0], curves.get("train/loss", []), curves.get("validation/loss", []))
    if rows == 2:
        panels[1].plot(*_columns(selection), color=ORANGE, marker="o", markersize=4)
        panels[1].set_ylabel(f"validation {metric}")
    panels[-1].set_xlabel("optimizer steps")
    for axes in panels:
        despine(axes, grid="both")
    figure.savefig(path)


def _stack(figure: "Figure", rows: int) -> "list[Axes]":
    return list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def _draw_loss(axes: "Axes", train: Curve, validation: Curve) -> None:
    if len(train) > _SMOOTHED_POINTS:
        axes.plot(*_columns(train), color=BLUE, alpha=0.3, linewidth=1)
        axes.plot(*_columns(_smoothed(train)), color=BLUE, label="training (smoothed)")
    elif train:
        axes.plot(*_columns(train), color=BLUE, marker="o" if len(train) < 3 else None, label="training")
    if validation:
        axes.plot(*_columns(validation), color=ORANGE, marker="o", markersize=4, label="validation")
    axes.set_ylabel("loss")
    axes.set_title("Learning curves", fontsize=11)
    if train or validation:
        axes.legend(frameon=False)


_THROUGHPUT_METRICS = (
    ("train/samples_per_second", "samples/s"),
    ("train/tokens_per_second", "tokens/s"),
    ("train/mfu", "MFU"),
    ("train/data_wait", "data wait"),
)
"""Metrics of the throughput plot and their labels; the last two are fractions, drawn as percent."""


def draw_throughput(path: Path, curves: Mapping[str, Curve]) -> None:
    """Draw training speed, and the fraction of the time spent waiting for data."""
    known = [(name, label) for name, label in _THROUGHPUT_METRICS if name in curves]
    figure = new_figure(7.5, 1.8 * len(known) + 0.9)
    panels = _stack(figure, len(known))
    for axes, (name, label) in zip(panels, known, strict=True):
        steps, values = _columns(curves[name])
        percent = label in ("MFU", "data wait")
        axes.plot(
            steps,
            [100 * value for value in values] if percent else values,
            color=ORANGE if label == "data wait" else BLUE,
            marker="o" if len(steps) < 3 else None,
        )
        axes.set_ylabel(f"{label} (%)" if percent else label)
        axes.set_ylim(0, 100 if percent else None)
        despine(axes, grid="both")
    panels[0].set_title("Throughput", fontsize=11)
    panels[-1].set_xlabel("optimizer steps")
    figure.savefig(path)


def _smoothed(curve: Curve, fraction: float = 0.05) -> Curve:
    """Return the moving average over a window of this fraction of the curve."""
    half = max(1, int(len(curve) * fraction / 2))
    values = [value for _, value in curve]
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [(step, sum(window) / len(window)) for (step, _), window in zip(curve, windows, strict=True)]


def _columns(curve: Curve) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [value for _, value in curve]
