"""Plots that explain the predictions of single rows, and their upload to the MLflow run of the model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayfuse.data.collate import collate
from rayfuse.data.rows import Row
from rayfuse.data.samples import Sample
from rayfuse.errors import InvalidInputError
from rayfuse.evaluation.plots import BLUE, DPI, ORANGE, despine
from rayfuse.model.explain import SALIENCY_TIME_BINS, Explanation, explain, sum_into_bins, sum_over_space
from rayfuse.model.fused import task_heads
from rayfuse.model.predictor import Predictor

_MAX_PANELS = 4
"""Maximum number of items or frames of one input that are drawn."""


@dataclass(frozen=True)
class ExplainedRow:
    """A row with its prediction and explanation."""

    row: Row
    """The row of the data."""
    sample: Sample
    """Its features."""
    prediction: Mapping[str, Any]
    """Prediction by task."""
    explanation: Explanation
    """Explanation of a batch of this sample alone."""


def explain_rows(predictor: Predictor, rows: Sequence[Row], count: int) -> list[ExplainedRow]:
    """Explain up to `count` rows, evenly spaced; rows that cannot be read are left out."""
    found: list[ExplainedRow] = []
    heads = task_heads(predictor.model)
    for number in np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows)), dtype=int)):
        try:
            sample = predictor.preprocessor.from_row(rows[number])
        except InvalidInputError:  # reported by the evaluation
            continue
        batch = collate([sample], predictor.preprocessor.modalities).to(predictor.device)
        explanation = explain(predictor.model, batch, predictor.preprocessor.modalities)
        prediction = {
            task: head.format_predictions(explanation.outputs[task])[0] for task, head in heads.items()
        }
        found.append(ExplainedRow(rows[number], sample, prediction, explanation))
    return found


def mean_attention(found: Sequence[ExplainedRow]) -> dict[str, float]:
    """Average the fusion's attention to each input over the rows that have it; empty without attention."""
    attention: dict[str, list[float]] = {}
    for one in found:
        if one.explanation.attention is not None:
            for column, (name, items) in enumerate(one.explanation.present.items()):
                if items[0]:
                    attention.setdefault(name, []).append(float(one.explanation.attention[0, column]))
    return {name: float(np.mean(values)) for name, values in attention.items()}


def save_attribution_plots(folder: Path, found: Sequence[ExplainedRow], predictor: Predictor) -> list[Path]:
    """Draw each row to a file in `folder`; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, one in enumerate(found, start=1):
        paths.append(folder / f"row_{number:02d}.png")
        draw_attributions(paths[-1], one, predictor)
    return paths


def draw_attributions(path: Path, one: ExplainedRow, predictor: Predictor) -> None:
    """Draw a line per task: contributions of the inputs, and saliency (orange: for the prediction, blue: against)."""
    from matplotlib.figure import Figure

    tasks = list(one.explanation.contributions)
    panels = {task: _panels(one, task) for task in tasks}
    columns = 1 + max((len(found) for found in panels.values()), default=0)
    figure = Figure(
        figsize=(4.2 + 2.9 * (columns - 1), 2.9 * max(1, len(tasks)) + 0.3), layout="constrained", dpi=DPI
    )
    figure.suptitle(f"{one.row.origin}", fontsize=9)
    grid = figure.subplots(max(1, len(tasks)), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for line, task in zip(grid, tasks, strict=False):
        _draw_contributions(line[0], one, task, predictor)
        for axes, draw in zip(line[1:], panels[task], strict=False):
            axes.set_visible(True)
            draw(axes)
    figure.savefig(path)


def _draw_contributions(axes: Any, one: ExplainedRow, task: str, predictor: Predictor) -> None:
    found, present = one.explanation.contributions[task], one.explanation.present
    used = [(column, name) for column, (name, items) in enumerate(present.items()) if items[0]][::-1]
    parts = [float(found.shap_values[0, column]) for column, _ in used]
    names = [name for _, name in used]
    if one.explanation.attention is not None:
        attention = one.explanation.attention[0]
        names = [f"{name}\n(attention {attention[column]:.2f})" for column, name in used]
    axes.set_visible(True)
    bars = axes.barh(names, parts, color=[ORANGE if part >= 0 else BLUE for part in parts], height=0.6)
    axes.bar_label(bars, [f"{part:+.3g}" for part in parts], padding=3, fontsize=8)
    axes.margins(x=0.25)
    axes.axvline(0, color="#1c2733", linewidth=0.8)
    axes.tick_params(labelsize=8)
    true = one.row.values.get(predictor.job.tasks[task].target_column or "")
    head = task_heads(predictor.model)[task]
    axes.set_title(
        f"{task}: {head.summarize_prediction(one.prediction[task])} (true: {_format_value(true)})\n"
        f"{head.attribution_score_name} {found.base_value[0]:.3g} without inputs, {found.value[0]:.3g} with",
        fontsize=9,
    )
    despine(axes)


def _format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


Draw = Callable[[Any], None]
"""Draws into a Matplotlib Axes."""


def _panels(one: ExplainedRow, task: str) -> list[Draw]:
    """Return functions that draw the saliency of each item of a row."""
    found: list[Draw] = []
    for name, saliency in one.explanation.saliency[task].items():
        items = one.sample.features.get(name, [])
        saliency_map = one.explanation.saliency_maps[name]
        for item, features in list(enumerate(items))[:_MAX_PANELS]:
            heat = saliency[0, item]
            title = name if len(items) == 1 else f"{name} {item + 1}"
            if heat.ndim == 1:
                found.append(_timeline_panel(heat, title, saliency_map.axis_label))
            elif heat.ndim == 2:
                found.append(_image_panel(heat, features[saliency_map.feature], title))
            else:
                found += _frame_panels(heat, features[saliency_map.feature], title, saliency_map.axis_label)
    return found


def _frame_panels(heat: np.ndarray, frames: np.ndarray, title: str, axis_label: str) -> list[Draw]:
    """Draw evenly spaced frames of a video, and its saliency over time."""
    shown = np.unique(np.linspace(0, len(frames) - 1, min(_MAX_PANELS - 1, len(frames)), dtype=int))
    images = [_image_panel(heat[i], frames[i], f"{title}, frame {i + 1} of {len(frames)}") for i in shown]
    return [*images, _timeline_panel(sum_over_space(heat), f"{title} over its frames", axis_label)]


def _image_panel(heat: np.ndarray, pixels: np.ndarray, title: str) -> Draw:
    def draw(axes: Any) -> None:
        from matplotlib.colors import to_rgb

        gray = pixels.mean(axis=0)
        spread = np.ptp(gray) or 1.0
        axes.imshow((gray - gray.min()) / spread, cmap="gray", vmin=-0.3, vmax=1.3)
        maximum = float(np.quantile(np.abs(heat), 0.995)) or 1.0
        strength = np.sqrt(np.clip(np.abs(heat) / maximum, 0, 1))
        colors = np.where((heat >= 0)[..., None], to_rgb(ORANGE), to_rgb(BLUE))
        axes.imshow(np.concatenate([colors, 0.9 * strength[..., None]], axis=2))
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])

    return draw


def _timeline_panel(heat: np.ndarray, title: str, axis_label: str) -> Draw:
    def draw(axes: Any) -> None:
        spans = sum_into_bins(heat, SALIENCY_TIME_BINS)
        positions = (np.arange(len(spans)) + 0.5) / len(spans)
        colors = [ORANGE if span >= 0 else BLUE for span in spans]
        axes.bar(positions, spans, width=1 / len(spans), color=colors)
        axes.axhline(0, color="#1c2733", linewidth=0.8)
        axes.set_xlim(0, 1)
        axes.set_xlabel(axis_label, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_title(title, fontsize=9)
        despine(axes)

    return draw
