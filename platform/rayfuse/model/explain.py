"""Explanations of predictions: contributions of inputs, attention of the fusion, saliency of pixels and time steps.

Contributions explain one number of a prediction, which its task selects (`TaskHead.attribution_score`): the probability
of the predicted class, or the predicted number. Probabilities are explained rather than log-odds: their contributions
lie between -1 and 1 and can be averaged over rows and classes, while the log-odds of an overconfident model grow
without bound. Saliency follows gradients, which vanish for a probability near 1, and so explains the log-odds
(`TaskHead.saliency_score`). How saliency is grouped into regions is up to each modality (`Modality.saliency_map`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.data.collate import Batch, EncoderBatch
from rayfuse.data.samples import Sample
from rayfuse.errors import SpecError
from rayfuse.modalities.base import Modality, SaliencyMap
from rayfuse.model.evaluation import EvaluationOutputs, Subset
from rayfuse.model.fused import FusedModel, task_heads
from rayfuse.model.tasks import TaskHead
from rayfuse.model.tokens import Tokens

MAX_INPUTS = 8
"""Maximum number of inputs: each of their 2^8 = 256 subsets is a forward pass."""
SALIENCY_GRID_SIZE = 16
"""Maximum number of parts of an image's height and width over which responses sum saliency."""
SALIENCY_TIME_BINS = 64
"""Maximum number of parts of a clip's duration over which responses sum saliency."""
INTEGRATION_STEPS = 32
"""Quadrature points of Integrated Gradients: each is a forward and backward pass from one encoder on."""


@dataclass(frozen=True)
class Contributions:
    """Contributions of the inputs to one task's predictions: `value` - `base_value` is their sum."""

    value: np.ndarray
    """float64 (rows,): score of the prediction from all inputs of the row."""
    base_value: np.ndarray
    """float64 (rows,): score of the same prediction without any input."""
    shap_values: np.ndarray
    """float64 (rows, inputs): Shapley values; 0 for an absent input."""


@dataclass(frozen=True)
class Explanation:
    """Explanations of the predictions of a batch. Arrays have a row per sample."""

    outputs: dict[str, torch.Tensor]
    """Outputs that the predictions of each task are made from (`FusedModel.predictions`), from all inputs."""
    present: dict[str, np.ndarray]
    """int64 (rows,) for each input: number of items that the sample has."""
    contributions: dict[str, Contributions]
    """By task, without tasks that have no attribution score."""
    attention: np.ndarray | None
    """float (rows, inputs): attention of the fusion to each input; None if it has no attention."""
    saliency: dict[str, dict[str, np.ndarray]]
    """By task and input, float32 (rows, items, …) with the axes of the input's saliency map: (height, width) for
    images, (frames, height, width) for videos, (steps,) for audio. The sum is the gain of the score over a constant
    input."""
    saliency_maps: dict[str, SaliencyMap] = field(default_factory=dict)
    """By input that has a saliency."""


def check_explainable(inputs: Sequence[str]) -> None:
    """Raise SpecError if a model has more than `MAX_INPUTS` inputs."""
    if len(inputs) > MAX_INPUTS:
        raise SpecError(
            f"explain: {len(inputs)} inputs would take a forward pass for each of their {2 ** len(inputs)} subsets; "
            f"at most {MAX_INPUTS} inputs can be explained"
        )


def num_forward_passes(sample: Sample, modalities: Mapping[str, Modality]) -> int:
    """Estimate the cost of explaining a sample, in forward passes of the model."""
    salient = sum(
        modalities[name].saliency_map({key: value.shape for key, value in items[0].items()}) is not None
        for name, items in sample.features.items()
    )
    return int(2 ** len(sample.features)) + INTEGRATION_STEPS * salient


def explain(model: FusedModel, batch: Batch, modalities: Mapping[str, Modality]) -> Explanation:
    """Explain a model's predictions for a batch; the model must be in evaluation mode.

    Each input is encoded once for all subsets, and `INTEGRATION_STEPS` times more if it has a saliency. Raises SpecError
    for a model of more than `MAX_INPUTS` inputs.
    """
    inputs, heads = list(batch.inputs), task_heads(model)
    check_explainable(inputs)
    maps = _saliency_maps(batch, modalities)
    with torch.inference_mode(False), torch.no_grad():
        encoded = model.encode(batch)
        fused = model.fuse(encoded, batch)
        predictions = model.predictions(fused)
        batch = replace(batch, targets=_generated_targets(heads, predictions))
        by_subset = {
            s: model.apply_heads(model.fuse(encoded, batch.select_inputs(s)), batch.targets)
            for s in all_subsets(inputs)
        }
        outputs = by_subset[tuple(inputs)]
        contributions = {
            name: found
            for name, head in heads.items()
            if (found := _contributions_of_task(name, head, by_subset, inputs)) is not None
        }
        saliency = {
            name: _compute_saliency(model, batch, encoded, outputs, (name, saliency_map), list(contributions))
            for name, saliency_map in maps.items()
        }
    attention = fused.get("attention")
    return Explanation(
        outputs=predictions,
        present={name: (part.index >= 0).sum(1).cpu().numpy() for name, part in batch.inputs.items()},
        contributions=contributions,
        attention=None if attention is None else attention.float().cpu().numpy(),
        saliency={
            task: {name: by_task[task] for name, by_task in saliency.items() if task in by_task}
            for task in contributions
        },
        saliency_maps=maps,
    )


def _generated_targets(
    heads: Mapping[str, TaskHead], predictions: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return generated texts as targets, whose probability given the inputs is explained."""
    return {name: head.as_targets(predictions[name]) for name, head in heads.items() if head.reads_targets}


def _contributions_of_task(
    task: str,
    head: TaskHead,
    outputs_by_subset: Mapping[Subset, Mapping[str, torch.Tensor]],
    inputs: Sequence[str],
) -> Contributions | None:
    return compute_contributions(head, {s: found[task] for s, found in outputs_by_subset.items()}, inputs)


def _saliency_maps(batch: Batch, modalities: Mapping[str, Modality]) -> dict[str, SaliencyMap]:
    """Return how to group the attributions of each input that has a saliency."""
    found = {}
    for name, part in batch.inputs.items():
        shapes = {key: tuple(value.shape[1:]) for key, value in (part.features or {}).items()}
        saliency_map = modalities[name].saliency_map(shapes)
        if saliency_map is not None:
            found[name] = saliency_map
    return found


def to_json(explanation: Explanation, row: int, heads: Mapping[str, TaskHead]) -> dict[str, Any]:
    """Convert the explanation of one sample to JSON.

    Returns {"tasks": {task: {"score", "value", "base_value", "contributions", "saliency"}}, "attention"}. Only the inputs
    that the sample has are listed. The saliency of an image is a grid of sums (at most `SALIENCY_GRID_SIZE` by
    `SALIENCY_GRID_SIZE`), of audio a list (at most `SALIENCY_TIME_BINS`), of a video a list over its frames; an input of
    several items has a list of those. `saliency` and `attention` are left out if there is none.
    """
    used = [name for name, items in explanation.present.items() if items[row]]
    columns = {name: column for column, name in enumerate(explanation.present)}
    tasks: dict[str, Any] = {}
    for task, found in explanation.contributions.items():
        tasks[task] = {
            "score": heads[task].attribution_score_name,
            "value": _round_to_4_digits(found.value[row]),
            "base_value": _round_to_4_digits(found.base_value[row]),
            "contributions": {
                name: _round_to_4_digits(found.shap_values[row, columns[name]]) for name in used
            },
        }
        saliency = explanation.saliency[task]
        parts = {
            name: _saliency_to_json(saliency[name][row], int(explanation.present[name][row]))
            for name in used
            if name in saliency
        }
        if parts:
            tasks[task]["saliency"] = parts
    if explanation.attention is None:
        return {"tasks": tasks}
    attention = explanation.attention[row]
    return {
        "tasks": tasks,
        "attention": {name: _round_to_4_digits(attention[columns[name]]) for name in used},
    }


def sum_into_bins(attributions: np.ndarray, max_bins: int) -> np.ndarray:
    """Sum attributions over at most `max_bins` nearly equal parts of the last axis."""
    length = attributions.shape[-1]
    starts = np.arange(min(max_bins, length)) * length // min(max_bins, length)
    return np.add.reduceat(attributions, starts, axis=-1)


def sum_over_space(attributions: np.ndarray) -> np.ndarray:
    """Sum a video's attributions, (frames, height, width), to (frames,); (steps,) is unchanged."""
    return attributions.sum(axis=(1, 2)) if attributions.ndim == 3 else attributions


def _saliency_to_json(items: np.ndarray, count: int) -> Any:
    """Convert the first `count` items of attributions (items, …)."""
    found = [_item_to_json(item) for item in items[:count]]
    return found[0] if len(items) == 1 else found


def _item_to_json(item: np.ndarray) -> Any:
    if item.ndim == 2:
        grid = sum_into_bins(sum_into_bins(item, SALIENCY_GRID_SIZE).T, SALIENCY_GRID_SIZE).T
        return [[_round_to_4_digits(value) for value in line] for line in grid]
    return [_round_to_4_digits(value) for value in sum_into_bins(sum_over_space(item), SALIENCY_TIME_BINS)]


def _round_to_4_digits(value: Any) -> float:
    """Round to four significant digits, which makes responses five times shorter."""
    return float(f"{float(value):.4g}")


def all_subsets(inputs: Sequence[str]) -> list[Subset]:
    """Return every subset of the inputs, including the empty one, in the order of the spec."""
    return [chosen for size in range(len(inputs) + 1) for chosen in combinations(inputs, size)]


def compute_contributions(
    head: TaskHead, outputs_by_subset: Mapping[Subset, torch.Tensor], inputs: Sequence[str]
) -> Contributions | None:
    """Compute contributions to a task's predictions from its raw outputs for every subset of the inputs.

    Returns None if the head has no attribution score.
    """
    complete = outputs_by_subset[tuple(inputs)]
    scores: dict[frozenset[str], np.ndarray] = {}
    for subset, raw in outputs_by_subset.items():
        score = head.attribution_score(raw, complete)
        if score is None:
            return None
        scores[frozenset(subset)] = score.double().cpu().numpy()
    return Contributions(scores[frozenset(inputs)], scores[frozenset()], shapley(scores, inputs))


def input_importance(
    heads: Mapping[str, TaskHead], inputs: Sequence[str], collected: Mapping[Subset, EvaluationOutputs]
) -> dict[str, Any]:
    """Summarize contributions over many samples, from the outputs of `collect_outputs` for every subset of the inputs.

    Returns, by task, JSON of {"score", "rows", "value" and "base_value": means over the rows, "contributions": {input:
    mean absolute contribution over the rows that have it}, "rows_with": {input: count}, "by_label": {label: {input: mean
    contribution over the rows with this prediction}}}; the last only if predictions have labels. Tasks without an
    attribution score are left out; the result is empty for more than `MAX_INPUTS` inputs.
    """
    if len(inputs) > MAX_INPUTS:
        return {}
    complete = collected[tuple(inputs)]
    present = np.stack([np.concatenate(complete.present[name]) for name in inputs], axis=1)
    found = {}
    for task in heads:
        if task in complete.scores:
            scores = {
                frozenset(subset): np.concatenate(outputs.scores[task])
                for subset, outputs in collected.items()
            }
            values = shapley(scores, inputs)
            found[task] = {
                "score": heads[task].attribution_score_name,
                "rows": len(values),
                "value": float(scores[frozenset(inputs)].mean()),
                "base_value": float(scores[frozenset()].mean()),
                "contributions": _mean_where_present(np.abs(values), present, inputs),
                "rows_with": {name: int(present[:, i].sum()) for i, name in enumerate(inputs)},
            }
            if task in complete.labels:
                found[task]["by_label"] = _group_by_label(complete.labels[task], values, present, inputs)
    return found


def _group_by_label(
    labels: Sequence[str], shap_values: np.ndarray, present: np.ndarray, inputs: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Average the contributions to each label, the most frequent label first."""
    names, groups, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rows = np.split(np.argsort(groups, kind="stable"), np.cumsum(counts)[:-1])
    return {
        str(names[i]): _mean_where_present(shap_values[rows[i]], present[rows[i]], inputs)
        for i in np.argsort(-counts, kind="stable")
    }


def _mean_where_present(values: np.ndarray, present: np.ndarray, inputs: Sequence[str]) -> dict[str, float]:
    """Average (rows, inputs) over the rows that have each input; inputs that no row has are left out."""
    return {
        name: float(values[present[:, i], i].mean()) for i, name in enumerate(inputs) if present[:, i].any()
    }


def shapley(values: Mapping[frozenset[str], np.ndarray], inputs: Sequence[str]) -> np.ndarray:
    """Compute exact Shapley values (Shapley, 1953), float64 (rows, inputs), from the value of each subset, (rows,).

    The Shapley value is an input's mean gain over all orders of adding inputs. The values sum to the value of all inputs
    minus that of none; inputs without effect, and absent ones, get 0.
    """
    count = len(inputs)
    found = np.zeros((len(values[frozenset()]), count))
    for column, name in enumerate(inputs):
        for subset in all_subsets([other for other in inputs if other != name]):
            before = frozenset(subset)
            orders = factorial(len(before)) * factorial(count - len(before) - 1) / factorial(count)
            found[:, column] += orders * (values[before | {name}] - values[before])
    return found


def integrated_gradients(
    score_fn: Callable[[torch.Tensor], Sequence[torch.Tensor]],
    features: torch.Tensor,
    steps: int = INTEGRATION_STEPS,
) -> list[torch.Tensor | None]:
    """Compute Integrated Gradients (Sundararajan et al., 2017) from a constant baseline, shaped like `features`.

    `score_fn` maps features (rows, …) to several scores (rows,), where each row depends on its own features alone. A
    row's attributions sum to its score minus that of the baseline (see `constant_baseline`), up to the error of
    Gauss–Legendre quadrature with `steps` points on the straight path. None for a score without a gradient.
    """
    start = constant_baseline(features)
    difference = features - start
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    totals: list[torch.Tensor | None] = []
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        with torch.enable_grad():
            point = (start + difference * float(node)).detach().requires_grad_()
            gradients = [_gradient(score, point) for score in score_fn(point)]
        parts = [None if g is None else g * difference * float(weight) for g in gradients]
        totals = [
            part if total is None else total if part is None else total + part
            for total, part in zip(totals or [None] * len(parts), parts, strict=True)
        ]
    return totals


def constant_baseline(features: torch.Tensor) -> torch.Tensor:
    """Fill each row of features, (rows, …), with its lowest value: a dark image, or the quietest level of a clip.

    Zeros are not a suitable baseline: networks that normalize their input are constant on the path to zero.
    """
    lowest = features.flatten(1).amin(dim=1)
    return lowest.view(-1, *[1] * (features.ndim - 1)).expand_as(features)


def _gradient(score: torch.Tensor, point: torch.Tensor) -> torch.Tensor | None:
    if not score.requires_grad:
        return None
    return torch.autograd.grad(score.sum(), point, retain_graph=True, allow_unused=True)[0]


def _compute_saliency(
    model: FusedModel,
    batch: Batch,
    encoded: Mapping[str, Tokens | None],
    outputs: Mapping[str, torch.Tensor],
    salient: tuple[str, SaliencyMap],
    tasks: Sequence[str],
) -> dict[str, np.ndarray]:
    """Compute attributions of one input's features by task, (rows, items, …); all other inputs stay unchanged."""
    name, saliency_map = salient
    part = _expand_per_sample(batch.inputs[name])
    assert part.features is not None, "inputs without features have no saliency map"
    features, index, heads = part.features, part.index, task_heads(model)
    feature = features[saliency_map.feature]
    expanded = Batch({**batch.inputs, name: part}, batch.targets, batch.weights)

    def scores(values: torch.Tensor) -> list[torch.Tensor]:
        changed = EncoderBatch({**features, saliency_map.feature: values}, index)
        alone = Batch({name: changed}, {}, batch.weights)
        fused = model.fuse({**encoded, **model.encode(alone)}, expanded)
        found = model.apply_heads(fused, batch.targets)
        all_scores = (heads[task].saliency_score(found[task], outputs[task]) for task in tasks)
        return [score for score in all_scores if score is not None]

    with _disable_cudnn_for_rnns(model.encoders[name]):
        attributed = integrated_gradients(scores, feature.float())
    shape = tuple(index.shape)
    return {
        task: _sum_axes(found, saliency_map.sum_axes).unflatten(0, shape).float().cpu().numpy()
        for task, found in zip(tasks, attributed, strict=True)
        if found is not None
    }


def _sum_axes(attributions: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return attributions.sum(dim=axes) if axes else attributions


def _expand_per_sample(part: EncoderBatch) -> EncoderBatch:
    """Copy equal values for each item of each sample, so that each gradient belongs to one sample."""
    if part.features is None:
        return part
    rows = part.index.clamp(min=0).flatten()
    numbers = torch.arange(part.index.numel(), device=part.index.device).view_as(part.index)
    features = {key: tensor[rows] for key, tensor in part.features.items()}
    return EncoderBatch(features, numbers.masked_fill(part.index < 0, -1))


@contextmanager
def _disable_cudnn_for_rnns(encoder: nn.Module) -> Iterator[None]:
    """Use PyTorch's recurrent layers, as those of cuDNN have no gradient in evaluation mode."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in encoder.modules())
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not recurrent):
        yield
