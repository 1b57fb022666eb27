"""Pictures of a run for MLflow and reports: confusion, learning curves, what each subset of the inputs is worth."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayfuse.registry.journal import Record
from rayfuse.spec.tasks import Mode

BLUE, ORANGE, _GRAY = "#2f6db3", "#d9822b", "#8a8f98"
DPI = 120
_MOST_NUMBERED = 25
_MOST_LABELLED = 60
_LONGEST_LABEL = 24


def save_pictures(
    folder: Path, evaluation: Mapping[str, Any], records: Iterable[Record], metric: str, mode: Mode = "max"
) -> list[Path]:
    """Draw all pictures of a run into `folder`; returns their paths.

    `evaluation`: {"split", "metrics", "by_inputs", "details", "explain"}; `records`: the run's journal; `metric`: what the job
    is judged by, and whether more or less of it is better.
    """
    folder.mkdir(parents=True, exist_ok=True)
    split = evaluation.get("split", "test")
    paths = []
    for task, found in evaluation.get("details", {}).items():
        if "confusion" in found:
            path = folder / f"confusion_{task}.png"
            draw_confusion(path, found["confusion"], found["classes"], f"{task}: {split} rows by class")
            paths.append(path)
    if len(evaluation.get("by_inputs", {})) > 1:
        path = folder / "by_inputs.png"
        draw_by_inputs(path, evaluation["by_inputs"], metric, mode, split)
        paths.append(path)
    for task, found in evaluation.get("explain", {}).items():
        if len(found["contributions"]) > 1:
            path = folder / f"contributions_{task}.png"
            draw_importance(path, task, found, split)
            paths.append(path)
    curves = curves_of(records)
    if curves:
        path = folder / "learning_curves.png"
        draw_curves(path, curves, metric)
        paths.append(path)
    if _RATES[0][0] in curves:
        path = folder / "throughput.png"
        draw_throughput(path, curves)
        paths.append(path)
    return paths


def draw_confusion(path: Path, counts: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> None:
    """Share of each true class (row) that was predicted as each class (column); numbers are rows of data."""
    import numpy as np
    from matplotlib.colors import Normalize, PowerNorm
    from matplotlib.figure import Figure

    table = np.asarray(counts, dtype=float)
    sums = table.sum(axis=1, keepdims=True)
    shares = np.divide(table, sums, out=np.zeros_like(table), where=sums > 0)
    names = [_short(name) for name in classes]
    cell = 0.62 if len(names) <= 12 else 0.42 if len(names) <= _MOST_NUMBERED else 0.22
    label = 0.085 * max(map(len, names))
    side = max(2.2, cell * len(names))
    figure = Figure(figsize=(side + label + 2.2, side + label + 1.4), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    numbered = len(names) <= _MOST_NUMBERED
    # Without numbers in the cells, rare mistakes must show by their colour.
    picture = axes.imshow(shares, cmap="Blues", norm=Normalize(0, 1) if numbered else PowerNorm(0.5, 0, 1))
    figure.colorbar(picture, ax=axes, label="share of the true class", fraction=0.046, pad=0.03)
    step = -(-len(names) // _MOST_LABELLED)
    size = 9 if numbered else 7
    upright = max(map(len, names)) > 3
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=90 if upright else 0, fontsize=size)
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{title}\n{_diagonal(table)}", fontsize=11)
    if numbered:
        _number_cells(axes, table, shares, size=9 if len(names) <= 12 else 7)
    figure.savefig(path)


def _diagonal(table: Any) -> str:
    total = int(table.sum())
    right = int(table.trace())
    return f"{right:,} of {total:,} right ({right / max(1, total):.1%})"


def _number_cells(axes: Any, table: Any, shares: Any, size: int) -> None:
    for (i, j), count in _cells(table):
        if count:
            colour = "white" if shares[i, j] > 0.55 else "#1c2733"
            axes.text(j, i, f"{int(count)}", ha="center", va="center", fontsize=size, color=colour)


def _cells(table: Any) -> Iterable[tuple[tuple[int, int], float]]:
    return (((i, j), float(value)) for i, row in enumerate(table) for j, value in enumerate(row))


def draw_by_inputs(
    path: Path, by_inputs: Mapping[str, Mapping[str, float]], metric: str, mode: Mode, split: str
) -> None:
    """A bar for every subset of the inputs, the best first."""
    from matplotlib.figure import Figure

    found = [(name, metrics[metric]) for name, metrics in by_inputs.items() if metric in metrics]
    found.sort(key=lambda pair: pair[1], reverse=mode == "min")  # the last is drawn on top
    whole = max((name for name, _ in found), key=lambda name: name.count("+"))
    height = 0.34 * len(found) + 1.3
    figure = Figure(figsize=(7.5, max(2.2, height)), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    colours = [BLUE if name == whole else _GRAY for name, _ in found]
    bars = axes.barh([name for name, _ in found], [value for _, value in found], color=colours, height=0.7)
    axes.bar_label(
        bars,
        [f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}" for _, value in found],
        padding=4,
        fontsize=9,
    )
    top = max((abs(value) for _, value in found), default=1.0) or 1.0
    bounded = mode == "max" and all(0 <= value <= 1 for _, value in found)
    low = min(0.0, *(value for _, value in found)) * 1.15
    axes.set_xlim(low, 1.12 if bounded else top * 1.18)
    axes.set_xlabel(f"{metric} on the {split} rows ({'higher' if mode == 'max' else 'lower'} is better)")
    axes.set_title("What the model answers from each subset of its inputs", fontsize=11)
    plain_axes(axes)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path)


def draw_importance(path: Path, task: str, found: Mapping[str, Any], split: str) -> None:
    """A bar for every input: its mean absolute contribution (see `rayfuse.model.explain.importance`)."""
    from matplotlib.figure import Figure

    ordered = sorted(found["contributions"].items(), key=lambda pair: pair[1])  # the last is drawn on top
    figure = Figure(figsize=(7.5, max(2.2, 0.34 * len(ordered) + 1.3)), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    bars = axes.barh([name for name, _ in ordered], [value for _, value in ordered], color=BLUE, height=0.7)
    axes.bar_label(bars, [f"{value:.3g}" for _, value in ordered], padding=4, fontsize=9)
    axes.set_xlim(0, 1.15 * max(value for _, value in ordered) or 1.0)
    axes.set_xlabel(
        f"mean absolute contribution to the {found['score']} of the answer, {split} rows that have it"
    )
    axes.set_title(f"{task}: what each input contributes (Shapley values)", fontsize=11)
    plain_axes(axes)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path)


Curve = list[tuple[int, float]]


def curves_of(records: Iterable[Record]) -> dict[str, Curve]:
    """(step, value) of each training and validation metric of a journal, by step; later values replace earlier."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in (record.get("metrics") or {}).items():
            if name.startswith(("train/", "validation/")) and isinstance(value, (int, float)):
                found.setdefault(name, {})[int(record.get("step") or 0)] = float(value)
    return {name: sorted(values.items()) for name, values in found.items()}


def draw_curves(path: Path, curves: Mapping[str, Curve], metric: str) -> None:
    """Loss of training and validation above, the metric that the job is judged by below."""
    from matplotlib.figure import Figure

    judged = curves.get(f"validation/{metric}", [])
    rows = 2 if judged and metric != "loss" else 1
    figure = Figure(figsize=(7.5, 3.0 * rows + 0.6), layout="constrained", dpi=DPI)
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    train, validation = curves.get("train/loss", []), curves.get("validation/loss", [])
    if len(train) > 60:
        panels[0].plot(*_columns(train), color=BLUE, alpha=0.3, linewidth=1)
        panels[0].plot(*_columns(_smoothed(train)), color=BLUE, label="training (smoothed)")
    elif train:
        panels[0].plot(*_columns(train), color=BLUE, marker="o" if len(train) < 3 else None, label="training")
    if validation:
        panels[0].plot(*_columns(validation), color=ORANGE, marker="o", markersize=4, label="validation")
    panels[0].set_ylabel("loss")
    panels[0].set_title("Learning curves", fontsize=11)
    if train or validation:
        panels[0].legend(frameon=False)
    if rows == 2:
        panels[1].plot(*_columns(judged), color=ORANGE, marker="o", markersize=4)
        panels[1].set_ylabel(f"validation {metric}")
    panels[-1].set_xlabel("optimizer steps")
    for axes in panels:
        plain_axes(axes)
        axes.grid(alpha=0.3)
    figure.savefig(path)


_RATES = (
    ("train/samples_per_second", "samples/s"),
    ("train/tokens_per_second", "tokens/s"),
    ("train/mfu", "MFU"),
    ("train/data_wait", "data wait"),
)
"""What is drawn of the speed, and what it is called; the last two are shares of 1."""


def draw_throughput(path: Path, curves: Mapping[str, Curve]) -> None:
    """How fast training was, and for which share of the time it waited for rows."""
    from matplotlib.figure import Figure

    known = [(name, label) for name, label in _RATES if name in curves]
    figure = Figure(figsize=(7.5, 1.8 * len(known) + 0.9), layout="constrained", dpi=DPI)
    panels = figure.subplots(len(known), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, label) in zip(panels, known, strict=True):
        steps, values = _columns(curves[name])
        share = label in ("MFU", "data wait")
        axes.plot(
            steps,
            [100 * value for value in values] if share else values,
            color=ORANGE if label == "data wait" else BLUE,
            marker="o" if len(steps) < 3 else None,
        )
        axes.set_ylabel(f"{label} (%)" if share else label)
        axes.set_ylim(0, 100 if share else None)
        plain_axes(axes)
        axes.grid(alpha=0.3)
    panels[0].set_title("Speed of training", fontsize=11)
    panels[-1].set_xlabel("optimizer steps")
    figure.savefig(path)


def _smoothed(curve: Curve, share: float = 0.05) -> Curve:
    """Mean over the values around each, a twentieth of the curve."""
    half = max(1, int(len(curve) * share / 2))
    values = [value for _, value in curve]
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [(step, sum(window) / len(window)) for (step, _), window in zip(curve, windows, strict=True)]


def _columns(curve: Curve) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [value for _, value in curve]


def plain_axes(axes: Any) -> None:
    """Without the frame's upper and right side; grids lie behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def _short(name: str) -> str:
    """Long names keep their beginning and their end, where they often differ."""
    if len(name) <= _LONGEST_LABEL:
        return name
    end = _LONGEST_LABEL // 3
    return f"{name[: _LONGEST_LABEL - end - 1]}…{name[-end:]}"
