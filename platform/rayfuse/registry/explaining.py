"""Pictures of why a model answered single rows as it did, and where they are kept beside its run."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayfuse.data.batches import collate
from rayfuse.data.rows import Row
from rayfuse.data.samples import Sample
from rayfuse.errors import BadInput, RayfuseError
from rayfuse.model.explain import SPANS, Explanation, binned, explain, over_time
from rayfuse.model.fused import heads_of
from rayfuse.model.predictor import Predictor
from rayfuse.registry.fetching import LocalModel
from rayfuse.registry.pictures import BLUE, DPI, ORANGE, plain_axes
from rayfuse.registry.tracking import connect, explained, tracking_uri
from rayfuse.registry.versions import get_version

ARTIFACTS = "explain"
"""Folder of the run's artifacts."""

_MOST_PANELS = 4
"""Items or frames of one input that are drawn."""


@dataclass(frozen=True)
class Explained:
    """One row, its sample, and why it was answered so."""

    row: Row
    sample: Sample
    answer: Mapping[str, Any]
    explanation: Explanation


def explain_rows(predictor: Predictor, rows: Sequence[Row], count: int) -> list[Explained]:
    """Explain `count` of the rows, evenly spread over all that can be read."""
    found: list[Explained] = []
    heads = heads_of(predictor.model)
    for number in np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows)), dtype=int)):
        try:
            sample = predictor.maker.from_row(rows[number])
        except BadInput:  # the evaluation has named it
            continue
        batch = collate([sample], predictor.maker.modalities).to(predictor.device)
        explanation = explain(predictor.model, batch)
        answer = {task: head.answers(explanation.outputs[task])[0] for task, head in heads.items()}
        found.append(Explained(rows[number], sample, answer, explanation))
    return found


def mean_attention(found: Sequence[Explained]) -> dict[str, float]:
    """How much the fusion looked at each input, over the rows that have it; empty where it does not attend."""
    looked: dict[str, list[float]] = {}
    for one in found:
        if one.explanation.attention is not None:
            for column, (name, items) in enumerate(one.explanation.present.items()):
                if items[0]:
                    looked.setdefault(name, []).append(float(one.explanation.attention[0, column]))
    return {name: float(np.mean(values)) for name, values in looked.items()}


def save_explanations(folder: Path, found: Sequence[Explained], predictor: Predictor) -> list[Path]:
    """Draw each row into `folder`; returns the pictures' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, one in enumerate(found, start=1):
        paths.append(folder / f"row_{number:02d}.png")
        draw_explained(paths[-1], one, predictor)
    return paths


def log_pictures(
    folder: Path, local: LocalModel, tracking: str | None, warn: Callable[[str], None]
) -> str | None:
    """Put a folder of pictures beside the run that made a model; the run's id, or None where no run is known of.

    An MLflow that is away is said to `warn`: the pictures are on this machine anyway.
    """
    try:
        if local.name is not None and local.version is not None:
            client = connect(tracking_uri(tracking), create=False)
            run_id = get_version(client, local.name, local.version).run_id
        elif (noted := _run_beside(local.folder)) is not None:
            uri, run_id = noted
            client = connect(tracking_uri(tracking or uri[0], uri[1]), create=False)
        else:
            return None
        if run_id is not None:
            with explained(client.tracking_uri):
                client.log_artifacts(run_id, str(folder), ARTIFACTS)
        return run_id
    except RayfuseError as error:
        warn(f"the pictures are not in MLflow: {error}")
        return None


def _run_beside(folder: Path) -> tuple[tuple[str | None, str], str] | None:
    """(`output.tracking`, `output.storage`) and the MLflow run of the run folder that a model folder lies in."""
    try:
        run = json.loads((folder.parent / "run.json").read_text(encoding="utf-8"))
        output = json.loads((folder.parent / "job.json").read_text(encoding="utf-8"))["output"]
        return (
            ((output.get("tracking"), output["storage"]), run["tracking_run"])
            if run["tracking_run"]
            else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def draw_explained(path: Path, one: Explained, predictor: Predictor) -> None:
    """A line per task: what each input contributed, and which pixels and moments counted (orange for, blue against)."""
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


def _draw_contributions(axes: Any, one: Explained, task: str, predictor: Predictor) -> None:
    found, present = one.explanation.contributions[task], one.explanation.present
    used = [(column, name) for column, (name, items) in enumerate(present.items()) if items[0]][::-1]
    parts = [float(found.parts[0, column]) for column, _ in used]
    names = [name for _, name in used]
    if one.explanation.attention is not None:
        looked = one.explanation.attention[0]
        names = [f"{name}\n(attention {looked[column]:.2f})" for column, name in used]
    axes.set_visible(True)
    bars = axes.barh(names, parts, color=[ORANGE if part >= 0 else BLUE for part in parts], height=0.6)
    axes.bar_label(bars, [f"{part:+.3g}" for part in parts], padding=3, fontsize=8)
    axes.margins(x=0.25)
    axes.axvline(0, color="#1c2733", linewidth=0.8)
    axes.tick_params(labelsize=8)
    answer = one.answer[task]
    said = answer.get("label", answer.get("value", ""))
    true = one.row.values.get(predictor.job.tasks[task].target_column or "")
    head = heads_of(predictor.model)[task]
    axes.set_title(
        f"{task}: {_shown(said)} (in the row: {_shown(true)})\n"
        f"{head.explained_as} {found.base[0]:.3g} without inputs, {found.value[0]:.3g} with",
        fontsize=9,
    )
    plain_axes(axes)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


Draw = Callable[[Any], None]


def _panels(one: Explained, task: str) -> list[Draw]:
    """What draws the saliency of each picture, frame and clip of a row."""
    found: list[Draw] = []
    for name, saliency in one.explanation.saliency[task].items():
        items = one.sample.features.get(name, [])
        for item, features in list(enumerate(items))[:_MOST_PANELS]:
            heat = saliency[0, item]
            title = name if len(items) == 1 else f"{name} {item + 1}"
            if heat.ndim == 1:
                found.append(_clip_panel(heat, title))
            elif heat.ndim == 2:
                found.append(_picture_panel(heat, features["pixel_values"], title))
            else:
                found += _frame_panels(heat, next(iter(_frames(features))), title)
    return found


def _frames(features: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [features[name] for name in ("frames", "pixel_values") if name in features]


def _frame_panels(heat: np.ndarray, frames: np.ndarray, title: str) -> list[Draw]:
    """Frames evenly spread over a video, and its saliency over time."""
    shown = np.unique(np.linspace(0, len(frames) - 1, min(_MOST_PANELS - 1, len(frames)), dtype=int))
    pictures = [_picture_panel(heat[i], frames[i], f"{title}, frame {i + 1} of {len(frames)}") for i in shown]
    return [*pictures, _clip_panel(over_time(heat), f"{title} over its frames")]


def _picture_panel(heat: np.ndarray, pixels: np.ndarray, title: str) -> Draw:
    def draw(axes: Any) -> None:
        from matplotlib.colors import to_rgb

        grey = pixels.mean(axis=0)
        spread = np.ptp(grey) or 1.0
        axes.imshow((grey - grey.min()) / spread, cmap="gray", vmin=-0.3, vmax=1.3)
        most = float(np.quantile(np.abs(heat), 0.995)) or 1.0
        strength = np.sqrt(np.clip(np.abs(heat) / most, 0, 1))
        colours = np.where((heat >= 0)[..., None], to_rgb(ORANGE), to_rgb(BLUE))
        axes.imshow(np.concatenate([colours, 0.9 * strength[..., None]], axis=2))
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])

    return draw


def _clip_panel(heat: np.ndarray, title: str) -> Draw:
    def draw(axes: Any) -> None:
        spans = binned(heat, SPANS)
        places = (np.arange(len(spans)) + 0.5) / len(spans)
        colours = [ORANGE if span >= 0 else BLUE for span in spans]
        axes.bar(places, spans, width=1 / len(spans), color=colours)
        axes.axhline(0, color="#1c2733", linewidth=0.8)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the time", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_title(title, fontsize=9)
        plain_axes(axes)

    return draw
