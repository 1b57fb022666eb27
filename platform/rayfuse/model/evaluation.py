"""Accumulate the outputs of a model over samples, for all inputs and for every subset of them, and compute metrics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch

from rayfuse.data.collate import Batch
from rayfuse.model.tasks import TaskHead
from rayfuse.model.tasks.accumulators import Accumulator, StoredOutputs, new_accumulator
from rayfuse.model.tasks.replies import Replies
from rayfuse.spec.job import Job

_MAX_INPUTS_WITH_ALL_SUBSETS = 5
_MAX_FREQUENT_COMBINATIONS = 10

Subset = tuple[str, ...]
"""Names of inputs, in the order of the job."""


def nonempty_subsets(inputs: Sequence[str]) -> list[Subset]:
    """Return every non-empty subset of the inputs, the largest first, names in the order of the job."""
    sizes = range(len(inputs), 0, -1)
    return [chosen for size in sizes for chosen in combinations(inputs, size)]


def evaluated_subsets(
    inputs: Sequence[str], present: Mapping[str, Sequence[np.ndarray]] | None = None
) -> list[Subset]:
    """Return the subsets of the inputs that metrics are computed with, the largest first.

    These are all subsets of up to 5 inputs. Of more inputs, they are all inputs, all but one, each alone, and the
    combinations that most samples have according to `present` (see `EvaluationOutputs.present`).
    """
    if len(inputs) <= _MAX_INPUTS_WITH_ALL_SUBSETS:
        return nonempty_subsets(inputs)
    chosen = [subset for size in (len(inputs), len(inputs) - 1, 1) for subset in combinations(inputs, size)]
    frequent = [] if present is None else _most_frequent_combinations(inputs, present)
    order = {name: position for position, name in enumerate(inputs)}
    return sorted({*chosen, *frequent}, key=lambda subset: (-len(subset), [order[name] for name in subset]))


def _most_frequent_combinations(
    inputs: Sequence[str], present: Mapping[str, Sequence[np.ndarray]]
) -> list[Subset]:
    table = np.stack([np.concatenate(present[name]) for name in inputs], axis=1)
    patterns, counts = np.unique(table, axis=0, return_counts=True)
    most = patterns[np.argsort(-counts, kind="stable")[:_MAX_FREQUENT_COMBINATIONS]]
    names = [tuple(name for name, has in zip(inputs, pattern, strict=True) if has) for pattern in most]
    return [subset for subset in names if subset]


def subset_name(subset: Subset) -> str:
    """Return the name of a subset in reports: its inputs joined by `+`."""
    return "+".join(subset)


@dataclass
class EvaluationOutputs:
    """Outputs on samples as metrics, details and contributions need them, accumulated over batches and workers."""

    tasks: dict[str, Accumulator[Any]] = field(default_factory=dict)
    """By task, the state of its metrics."""
    scores: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """By task, float (samples,), one array per batch: `TaskHead.attribution_score` of the prediction from all inputs."""
    labels: dict[str, list[str]] = field(default_factory=dict)
    """By task whose predictions have labels, those of the samples."""
    present: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """By input, bool (samples,): which samples have it."""
    losses: dict[str, float] = field(default_factory=dict)
    """By task, summed over the samples."""
    loss_weights: dict[str, float] = field(default_factory=dict)
    """By task, the weights of the samples in the mean loss, summed."""
    replies: dict[str, Replies] = field(default_factory=dict)
    """By task that generates texts, those of the samples whose replies were decoded."""
    num_samples: int = 0
    """Number of samples, without fillers."""

    def add(
        self,
        heads: Mapping[str, TaskHead],
        outputs: Mapping[str, torch.Tensor],
        batch: Batch,
        complete: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Add the raw outputs of a batch by task; its filler samples are left out.

        `complete`: the raw outputs from all inputs, if scores are to be added.
        """
        real = batch.weights > 0
        for name, head in heads.items():
            if name in batch.targets and real.any():
                chosen, targets = outputs[name][real].float(), batch.targets[name][real]
                self._add_loss(name, float(head.loss(chosen, targets).sum()), head.loss_weights(targets))
                if name not in self.tasks:
                    self.tasks[name] = new_accumulator(head)
                self.tasks[name].update(head, chosen.cpu().numpy(), targets.cpu().numpy())
                if complete is not None:
                    self._add_scores(name, head, chosen, complete[name][real].float())
                if outputs is complete and name in self.scores and not head.reads_targets:
                    self._add_labels(name, head, chosen)
        for name, part in batch.inputs.items():
            self.present.setdefault(name, []).append((part.index[real] >= 0).any(dim=1).cpu().numpy())
        self.num_samples += int(real.sum())

    def add_replies(
        self, heads: Mapping[str, TaskHead], generated: Mapping[str, torch.Tensor], batch: Batch
    ) -> None:
        """Add the generated outputs of a batch by task (`TaskHead.generate`); its filler samples are left out."""
        real = batch.weights > 0
        for name, head in heads.items():
            if head.reads_targets and name in batch.targets and real.any():
                found = head.read_replies(generated[name][real], batch.targets[name][real])
                self.replies.setdefault(name, Replies()).rows.extend(found)

    def _add_loss(self, name: str, loss: float, weights: torch.Tensor) -> None:
        self.losses[name] = self.losses.get(name, 0.0) + loss
        self.loss_weights[name] = self.loss_weights.get(name, 0.0) + float(weights.sum())

    def _add_scores(self, name: str, head: TaskHead, outputs: torch.Tensor, complete: torch.Tensor) -> None:
        scores = head.attribution_score(outputs, complete)
        if scores is not None:
            self.scores.setdefault(name, []).append(scores.double().cpu().numpy())

    def _add_labels(self, name: str, head: TaskHead, outputs: torch.Tensor) -> None:
        labels = [prediction.get("label") for prediction in head.format_predictions(outputs)]
        if all(isinstance(label, (str, int, float)) for label in labels):
            self.labels.setdefault(name, []).extend(map(str, labels))

    def merge(self, other: "EvaluationOutputs") -> None:
        """Add the samples of another worker."""
        for name, state in other.tasks.items():
            if name in self.tasks:
                self.tasks[name].merge(state)
            else:
                self.tasks[name] = state
        for mine, theirs in ((self.scores, other.scores), (self.present, other.present)):
            for name, arrays in theirs.items():
                mine.setdefault(name, []).extend(arrays)
        for name, labels in other.labels.items():
            self.labels.setdefault(name, []).extend(labels)
        for sums, of_other in ((self.losses, other.losses), (self.loss_weights, other.loss_weights)):
            for name, value in of_other.items():
                sums[name] = sums.get(name, 0.0) + value
        for name, replies in other.replies.items():
            self.replies.setdefault(name, Replies()).merge(replies)
        self.num_samples += other.num_samples


def collect_outputs(
    forward: Callable[..., Any],
    heads: Mapping[str, TaskHead],
    batches: Iterable[Batch],
    subsets: Sequence[Subset] | None = None,
    decoded: Sequence[Subset] = (),
) -> list[EvaluationOutputs]:
    """Accumulate outputs over `batches` for each of the subsets of inputs, or once for all inputs.

    Tasks that generate texts decode them for the subsets in `decoded`, which must be among `subsets`.

    `forward` is a FusedModel or a DeepSpeed engine with one, in evaluation mode. If all inputs and no input are among
    the subsets, the scores that `input_importance` needs are added.
    """
    collected = [EvaluationOutputs() for _ in subsets or [()]]
    with torch.inference_mode():
        for batch in batches:
            results = forward(batch, subsets) if subsets is not None else [forward(batch)]
            position = _position_of_complete(subsets or (), batch)
            complete = None if position is None else results[position].tasks
            for outputs, result in zip(collected, results, strict=True):
                outputs.add(heads, result.tasks, batch, complete)
            if decoded and subsets is not None:
                generated = forward(batch, decoded, True)
                for subset, result in zip(decoded, generated, strict=True):
                    collected[subsets.index(subset)].add_replies(heads, result.tasks, batch)
    return collected


def decoded_subsets(heads: Mapping[str, TaskHead], inputs: Sequence[str]) -> list[Subset]:
    """Return the subsets of the inputs for which texts are decoded: all inputs, and all but one; none without such tasks."""
    if not any(head.reads_targets for head in heads.values()):
        return []
    return [subset for size in (len(inputs), len(inputs) - 1) for subset in combinations(inputs, size)]


def collect_replies(
    forward: Callable[..., Any], heads: Mapping[str, TaskHead], batches: Iterable[Batch], inputs: Subset
) -> dict[str, Replies]:
    """Decode the texts of tasks over `batches` with all inputs; `forward` is as for `collect_outputs`."""
    collected = EvaluationOutputs()
    with torch.inference_mode():
        for batch in batches:
            [result] = forward(batch, [inputs], True)
            collected.add_replies(heads, result.tasks, batch)
    return collected.replies


def _position_of_complete(subsets: Sequence[Subset], batch: Batch) -> int | None:
    """Return the position of the subset of all inputs; None if contributions cannot be computed from the subsets."""
    complete = [i for i, subset in enumerate(subsets) if set(subset) == set(batch.inputs)]
    return complete[0] if complete and () in subsets else None


def collect_raw_outputs(
    forward: Callable[..., Any], heads: Mapping[str, TaskHead], batches: Iterable[Batch]
) -> dict[str, StoredOutputs]:
    """Store the raw outputs over `batches` by task; `forward` is as for `collect_outputs`."""
    collected = {name: StoredOutputs() for name in heads}
    with torch.inference_mode():
        for batch in batches:
            outputs, real = forward(batch).tasks, batch.weights > 0
            for name, head in heads.items():
                if name in batch.targets and real.any():
                    found = outputs[name][real].float(), batch.targets[name][real]
                    collected[name].update(head, *(part.cpu().numpy() for part in found))
    return collected


def compute_metrics(heads: Mapping[str, TaskHead], job: Job, outputs: EvaluationOutputs) -> dict[str, float]:
    """Compute every metric of the job: `loss` and TASK/METRIC."""
    found: dict[str, float] = {}
    total = 0.0
    for name, head in heads.items():
        loss = outputs.losses[name] / max(1.0, outputs.loss_weights[name])
        weight = job.tasks[name].weight
        total += loss * (1.0 if weight == "learned" else weight)
        found[f"{name}/loss"] = loss
        metrics = outputs.tasks[name].metrics(head)
        if name in outputs.replies:
            metrics |= head.reply_metrics(outputs.replies[name])
        found |= {f"{name}/{metric}": value for metric, value in metrics.items()}
    return {"loss": total, **found}


def fill_memory_banks(
    heads: Mapping[str, TaskHead], outputs: Mapping[str, StoredOutputs]
) -> dict[str, np.ndarray]:
    """Fill the memory banks of tasks with outputs on training rows; return the changed buffers of the model by name."""
    return {
        f"tasks.{name}.{buffer}": value
        for name, stored in outputs.items()
        for buffer, value in heads[name].fill_memory_bank(stored.arrays()[0]).items()
    }


def calibrate(heads: Mapping[str, TaskHead], outputs: Mapping[str, StoredOutputs]) -> dict[str, float]:
    """Calibrate the tasks on validation rows; return the changed buffers of the model by name."""
    return {
        f"tasks.{name}.{buffer}": value
        for name, stored in outputs.items()
        for buffer, value in heads[name].calibrate(*stored.arrays()).items()
    }


def details(
    heads: Mapping[str, TaskHead], outputs: EvaluationOutputs, blind: EvaluationOutputs | None = None
) -> dict[str, Any]:
    """Return the details that each task reports in addition to scalar metrics, such as a confusion matrix.

    blind: outputs without any input, for the metrics of texts that a model of one input writes without it.
    """
    found = {name: outputs.tasks[name].details(head) for name, head in heads.items()}
    for name, replies in outputs.replies.items():
        found[name] |= replies.details()
        if blind is not None and name in blind.replies:
            found[name]["without_inputs"] = heads[name].reply_metrics(blind.replies[name])
    return found
