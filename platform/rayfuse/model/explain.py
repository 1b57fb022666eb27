"""Why a model answered so: what each input contributed, which inputs the fusion looked at, which pixels and moments counted.

Contributions explain one number of an answer, which its task chooses (`TaskHead.explained`): the probability of the
answered class, the predicted number. A probability and not its log-odds: contributions then say "the picture brings
0.7 of the 0.9", stay between -1 and 1, and may be averaged over rows and classes, while the log-odds of a model that is
sure of itself grow without bound and tell more of its overconfidence than of its inputs. Saliency follows gradients,
which a probability near 1 has none of, and so explains the log-odds (`TaskHead.differentiated`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.data.batches import Batch, EncoderBatch
from rayfuse.data.samples import Sample
from rayfuse.errors import SpecError
from rayfuse.model.evaluation import Outputs, Subset
from rayfuse.model.fused import FusedModel, heads_of
from rayfuse.model.tasks import TaskHead
from rayfuse.model.tokens import Tokens

MOST_INPUTS = 8
"""Every subset of the inputs is one pass: 256 of them."""
GRID = 16
"""Replies give saliency as sums over at most so many equal parts of a picture's height and width."""
SPANS = 64
"""And over at most so many of a clip's time."""
STEPS = 32
"""Points of the path that Integrated Gradients follows: forward and backward through one encoder and all after it."""


@dataclass(frozen=True)
class Contributions:
    """What each input contributed to one task's answers: `value` - `base` = the sum over `parts`."""

    value: np.ndarray
    """float64 (rows,): the score of the answer from all the inputs that the row has."""
    base: np.ndarray
    """float64 (rows,): the score of the same answer from no input at all."""
    parts: np.ndarray
    """float64 (rows, inputs): Shapley values; 0 for an absent input."""


@dataclass(frozen=True)
class Explanation:
    """Why the samples of a batch were answered as they were. Arrays have a row per sample."""

    outputs: dict[str, torch.Tensor]
    """Raw outputs of each task from all inputs, to make the answers of."""
    present: dict[str, np.ndarray]
    """int64 (rows,) for each input: how many items the sample has of it."""
    contributions: dict[str, Contributions]
    """By task; a task whose head has nothing to explain is left out."""
    attention: np.ndarray | None
    """float (rows, inputs): how much the fusion looked at each input; None where it does not attend."""
    saliency: dict[str, dict[str, np.ndarray]]
    """By task and input, float32: (rows, items, height, width) for pictures, (rows, items, frames, height, width)
    for videos, (rows, items, steps) for sound. Sums are what the differentiated score gains over an even input."""


def check_explainable(inputs: Sequence[str]) -> None:
    """Raise SpecError where there are too many inputs."""
    if len(inputs) > MOST_INPUTS:
        raise SpecError(
            f"explain: this model has {len(inputs)} inputs, and contributions take a pass for each of their "
            f"{2 ** len(inputs)} subsets; at most {MOST_INPUTS} inputs are explained"
        )


def passes(sample: Sample) -> int:
    """About what explaining a sample costs, in passes of the model."""
    salient = sum(_salient(items[0]) is not None for items in sample.features.values())
    return int(2 ** len(sample.features)) + STEPS * salient


def explain(model: FusedModel, batch: Batch) -> Explanation:
    """Explain a model's answers to a batch; the model must be in evaluation mode.

    Each input is encoded once for all subsets, and then `STEPS` times for the saliency of pictures and clips. Raises
    SpecError for a model of more than `MOST_INPUTS` inputs.
    """
    inputs, heads = list(batch.inputs), heads_of(model)
    check_explainable(inputs)
    with torch.inference_mode(False), torch.no_grad():
        encoded = model.encode(batch)
        fused = model.fuse(encoded, batch)
        by_subset = {s: model.answer(model.fuse(encoded, batch.subset(s))) for s in every_subset(inputs)}
        outputs = by_subset[tuple(inputs)]
        found = {
            name: contributions(head, {s: answers[name] for s, answers in by_subset.items()}, inputs)
            for name, head in heads.items()
        }
        known = {name: parts for name, parts in found.items() if parts is not None}
        saliency = {
            name: attributed
            for name in inputs
            if (attributed := _saliency(model, batch, encoded, outputs, name, list(known)))
        }
    attention = fused.get("attention")
    return Explanation(
        outputs=outputs,
        present={name: (part.index >= 0).sum(1).cpu().numpy() for name, part in batch.inputs.items()},
        contributions=known,
        attention=None if attention is None else attention.float().cpu().numpy(),
        saliency={
            task: {name: by_task[task] for name, by_task in saliency.items() if task in by_task}
            for task in known
        },
    )


def plain(explanation: Explanation, row: int, heads: Mapping[str, TaskHead]) -> dict[str, Any]:
    """The explanation of one sample as JSON: {"tasks": {task: {"score", "value", "base", "contributions", "saliency"}},
    "attention"}.

    Only the inputs that the sample has are listed. A picture's saliency is a grid of sums (`GRID`), a clip's a list
    (`SPANS`), a video's a list over its frames; an input of several items has a list of those. `saliency` and
    `attention` are left out where there is none.
    """
    used = [name for name, items in explanation.present.items() if items[row]]
    columns = {name: column for column, name in enumerate(explanation.present)}
    tasks: dict[str, Any] = {}
    for task, found in explanation.contributions.items():
        tasks[task] = {
            "score": heads[task].explained_as,
            "value": _short(found.value[row]),
            "base": _short(found.base[row]),
            "contributions": {name: _short(found.parts[row, columns[name]]) for name in used},
        }
        saliency = explanation.saliency[task]
        parts = {
            name: _plain_saliency(saliency[name][row], int(explanation.present[name][row]))
            for name in used
            if name in saliency
        }
        if parts:
            tasks[task]["saliency"] = parts
    if explanation.attention is None:
        return {"tasks": tasks}
    looked = explanation.attention[row]
    return {"tasks": tasks, "attention": {name: _short(looked[columns[name]]) for name in used}}


def binned(attributions: np.ndarray, most: int) -> np.ndarray:
    """Sums over at most `most` nearly equal parts of the last axis."""
    length = attributions.shape[-1]
    starts = np.arange(min(most, length)) * length // min(most, length)
    return np.add.reduceat(attributions, starts, axis=-1)


def over_time(attributions: np.ndarray) -> np.ndarray:
    """A video's (frames, height, width) as (frames,); what is (steps,) already stays."""
    return attributions.sum(axis=(1, 2)) if attributions.ndim == 3 else attributions


def _plain_saliency(items: np.ndarray, count: int) -> Any:
    """`items`: (items, …), of which the sample has the first `count`."""
    found = [_plain_item(item) for item in items[:count]]
    return found[0] if len(items) == 1 else found


def _plain_item(item: np.ndarray) -> Any:
    if item.ndim == 2:
        grid = binned(binned(item, GRID).T, GRID).T
        return [[_short(value) for value in line] for line in grid]
    return [_short(value) for value in binned(over_time(item), SPANS)]


def _short(value: Any) -> float:
    """Four digits are all that anyone reads, and a fifth of the reply."""
    return float(f"{float(value):.4g}")


def every_subset(inputs: Sequence[str]) -> list[Subset]:
    """Every subset of the inputs, the empty one too, names in the spec's order."""
    return [chosen for size in range(len(inputs) + 1) for chosen in combinations(inputs, size)]


def contributions(
    head: TaskHead, outputs: Mapping[Subset, torch.Tensor], inputs: Sequence[str]
) -> Contributions | None:
    """Contributions to a task's answers from its raw outputs for every subset of the inputs.

    None where the head has nothing to explain.
    """
    answered = outputs[tuple(inputs)]
    scores: dict[frozenset[str], np.ndarray] = {}
    for subset, raw in outputs.items():
        score = head.explained(raw, answered)
        if score is None:
            return None
        scores[frozenset(subset)] = score.double().cpu().numpy()
    return Contributions(scores[frozenset(inputs)], scores[frozenset()], shapley(scores, inputs))


def importance(
    heads: Mapping[str, TaskHead], inputs: Sequence[str], collected: Mapping[Subset, Outputs]
) -> dict[str, Any]:
    """What the inputs contributed over many samples, from the outputs that `collect` gave for every subset of them.

    By task, as JSON: {"score", "rows", "value", "base": means over the rows, "contributions": {input: the mean absolute
    contribution over the rows that have it}, "rows_with": {input: count}, "by_answer": {label: {input: the mean
    contribution over the rows so answered}}}; the last where answers have labels. Nothing for more than
    `MOST_INPUTS` inputs, and for tasks that are not explained.
    """
    if len(inputs) > MOST_INPUTS:
        return {}
    whole = collected[tuple(inputs)]
    present = np.stack([np.concatenate(whole.present[name]) for name in inputs], axis=1)
    found = {}
    for task, head in heads.items():
        raw = {subset: torch.from_numpy(outputs.of(task)[0]) for subset, outputs in collected.items()}
        known = contributions(head, raw, inputs)
        if known is not None:
            means = _mean_over(np.abs(known.parts), present, inputs)
            found[task] = {
                "score": head.explained_as,
                "rows": len(known.value),
                "value": float(known.value.mean()),
                "base": float(known.base.mean()),
                "contributions": means,
                "rows_with": {name: int(present[:, i].sum()) for i, name in enumerate(inputs)},
                **_by_answer(head.answers(raw[tuple(inputs)]), known.parts, present, inputs),
            }
    return found


def _by_answer(
    answers: Sequence[Mapping[str, Any]], parts: np.ndarray, present: np.ndarray, inputs: Sequence[str]
) -> dict[str, Any]:
    if not all(isinstance(answer.get("label"), (str, int, float)) for answer in answers):
        return {}
    labels = np.array([str(answer["label"]) for answer in answers])
    return {
        "by_answer": {
            str(label): _mean_over(parts[labels == label], present[labels == label], inputs)
            for label in np.unique(labels)
        }
    }


def _mean_over(values: np.ndarray, present: np.ndarray, inputs: Sequence[str]) -> dict[str, float]:
    """Means of (rows, inputs) over the rows that have each input; one that no row has is left out."""
    return {
        name: float(values[present[:, i], i].mean()) for i, name in enumerate(inputs) if present[:, i].any()
    }


def shapley(values: Mapping[frozenset[str], np.ndarray], inputs: Sequence[str]) -> np.ndarray:
    """Exact Shapley values (Shapley, 1953): float64 (rows, inputs), from the value of each subset, (rows,).

    An input's mean gain over all orders in which inputs can come in. They sum to the value of all inputs less that of
    none; an input that changes nothing gets 0, and so does an absent one, with which no subset can gain.
    """
    count = len(inputs)
    found = np.zeros((len(values[frozenset()]), count))
    for column, name in enumerate(inputs):
        for subset in every_subset([other for other in inputs if other != name]):
            before = frozenset(subset)
            orders = factorial(len(before)) * factorial(count - len(before) - 1) / factorial(count)
            found[:, column] += orders * (values[before | {name}] - values[before])
    return found


def integrated_gradients(
    scores: Callable[[torch.Tensor], Sequence[torch.Tensor]], features: torch.Tensor, steps: int = STEPS
) -> list[torch.Tensor | None]:
    """Integrated Gradients (Sundararajan et al., 2017) from an even input (see `even`), shaped like `features`.

    `scores` maps features (rows, …) to several scores (rows,), each row's of its own features alone. A row's
    attributions sum to its score less that of the even input, as exactly as Gauss–Legendre quadrature with `steps`
    points is on the straight path between them. None for a score that no gradient leads to.
    """
    start = even(features)
    way = features - start
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    totals: list[torch.Tensor | None] = []
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        with torch.enable_grad():
            point = (start + way * float(node)).detach().requires_grad_()
            gradients = [_gradient(score, point) for score in scores(point)]
        parts = [None if g is None else g * way * float(weight) for g in gradients]
        totals = [
            part if total is None else total if part is None else total + part
            for total, part in zip(totals or [None] * len(parts), parts, strict=True)
        ]
    return totals


def even(features: torch.Tensor) -> torch.Tensor:
    """Each row (rows, …) at its own lowest value throughout: a dark picture, a clip as quiet as its quietest moment.

    Zeros would not do: networks that normalise what they see do not change on the way there, and jump at its end.
    """
    lowest = features.flatten(1).amin(dim=1)
    return lowest.view(-1, *[1] * (features.ndim - 1)).expand_as(features)


def _gradient(score: torch.Tensor, point: torch.Tensor) -> torch.Tensor | None:
    if not score.requires_grad:
        return None
    return torch.autograd.grad(score.sum(), point, retain_graph=True, allow_unused=True)[0]


def _over_channels(attributions: torch.Tensor) -> torch.Tensor:
    return attributions.sum(dim=-3)


def _over_bands(attributions: torch.Tensor) -> torch.Tensor:
    return attributions.sum(dim=-2)


def _over_all_but_time(attributions: torch.Tensor) -> torch.Tensor:
    return attributions.flatten(2).sum(2) if attributions.ndim > 2 else attributions


SALIENT: dict[str, tuple[tuple[int, ...], Callable[[torch.Tensor], torch.Tensor]]] = {
    "pixel_values": ((4,), _over_channels),
    "frames": ((5,), _over_channels),
    "mel": ((3,), _over_bands),
    "waveform": ((2,), _over_all_but_time),
    "input_features": ((3,), _over_bands),
    "input_values": ((2, 3), _over_all_but_time),
}
"""Features of pictures and clips that have a saliency: their dimensions with the rows, and how it is summed."""


def _salient(features: Mapping[str, Any]) -> str | None:
    """The feature that carries an input's picture or time."""
    return next((name for name in SALIENT if name in features), None)


def _saliency(
    model: FusedModel,
    batch: Batch,
    encoded: Mapping[str, Tokens | None],
    outputs: Mapping[str, torch.Tensor],
    name: str,
    tasks: Sequence[str],
) -> dict[str, np.ndarray]:
    """By task, (rows, items, …): attributions of one input's features, all other inputs as they are."""
    part = _each_its_own(batch.inputs[name])
    feature = _salient(part.features or {})
    if feature is None or part.features is None or part.features[feature].ndim not in SALIENT[feature][0]:
        return {}
    features, index, heads = part.features, part.index, heads_of(model)
    asked = Batch({**batch.inputs, name: part}, {}, batch.weights)

    def scores(values: torch.Tensor) -> list[torch.Tensor]:
        alone = Batch({name: EncoderBatch({**features, feature: values}, index)}, {}, batch.weights)
        answers = model.answer(model.fuse({**encoded, **model.encode(alone)}, asked))
        found = (heads[task].differentiated(answers[task], outputs[task]) for task in tasks)
        return [score for score in found if score is not None]

    with _differentiable(model.encoders[name]):
        attributed = integrated_gradients(scores, features[feature].float())
    shape = tuple(index.shape)
    return {
        task: SALIENT[feature][1](found).unflatten(0, shape).float().cpu().numpy()
        for task, found in zip(tasks, attributed, strict=True)
        if found is not None
    }


def _each_its_own(part: EncoderBatch) -> EncoderBatch:
    """The same values with a copy for each item of each sample, so that a gradient belongs to one sample."""
    if part.features is None:
        return part
    rows = part.index.clamp(min=0).flatten()
    numbers = torch.arange(part.index.numel(), device=part.index.device).view_as(part.index)
    features = {key: tensor[rows] for key, tensor in part.features.items()}
    return EncoderBatch(features, numbers.masked_fill(part.index < 0, -1))


@contextmanager
def _differentiable(encoder: nn.Module) -> Iterator[None]:
    """cuDNN's recurrent layers have no gradient in evaluation mode; PyTorch's own have."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in encoder.modules())
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not recurrent):
        yield
