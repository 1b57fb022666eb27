"""Accumulators of the metrics of a task over batches and workers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Self, TypeVar

import numpy as np

from rayfuse.model.tasks.base import TaskHead

HeadT = TypeVar("HeadT", bound=TaskHead)


class Accumulator(ABC, Generic[HeadT]):
    """State of the metrics of a task. It holds no part of the model, so that workers can exchange it."""

    @abstractmethod
    def update(self, head: HeadT, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Add the raw outputs, float32 (batch, …), and targets of a batch."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add the samples of another accumulator of the same task."""

    @abstractmethod
    def metrics(self, head: HeadT) -> dict[str, float]:
        """Compute `TaskHead.metrics` over all samples."""

    @abstractmethod
    def details(self, head: HeadT) -> dict[str, Any]:
        """Compute `TaskHead.details` over all samples."""


class StoredOutputs(Accumulator[TaskHead]):
    """All raw outputs and targets, for metrics that cannot be accumulated."""

    def __init__(self) -> None:
        self._outputs: list[np.ndarray] = []
        self._targets: list[np.ndarray] = []

    def update(self, head: TaskHead, outputs: np.ndarray, targets: np.ndarray) -> None:
        self._outputs.append(outputs)
        self._targets.append(targets)

    def merge(self, other: "StoredOutputs") -> None:
        self._outputs += other._outputs
        self._targets += other._targets

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return outputs and targets of all samples, each (samples, …)."""
        return _concatenate_padded(self._outputs), _concatenate_padded(self._targets)

    def metrics(self, head: TaskHead) -> dict[str, float]:
        return head.metrics(*self.arrays())

    def details(self, head: TaskHead) -> dict[str, Any]:
        return head.details(*self.arrays())


class AccumulatedHead(TaskHead, ABC):
    """A head whose metrics are those of its accumulator, so that evaluation stores no raw outputs."""

    @abstractmethod
    def accumulator(self) -> Accumulator[Any]:
        """Return an accumulator without samples."""

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        return self._accumulate(outputs, targets).metrics(self)

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        return self._accumulate(outputs, targets).details(self)

    def _accumulate(self, outputs: np.ndarray, targets: np.ndarray) -> Accumulator[Any]:
        found = self.accumulator()
        found.update(self, outputs, targets)
        return found


def new_accumulator(head: TaskHead) -> Accumulator[Any]:
    """Return an accumulator for a head."""
    return head.accumulator() if isinstance(head, AccumulatedHead) else StoredOutputs()


class ConfusionCounts:
    """Number of samples by true and predicted class, for the pairs of classes that occur."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._pairs = np.zeros(0, dtype=np.int64)
        self._counts = np.zeros(0, dtype=np.int64)

    def add(self, true: np.ndarray, predicted: np.ndarray) -> None:
        """Add samples by the indices of their classes, int (samples,)."""
        pairs = true.astype(np.int64) * self.num_classes + predicted
        self._add(pairs, np.ones(len(pairs), dtype=np.int64))

    def merge(self, other: "ConfusionCounts") -> None:
        """Add the samples of another."""
        self._add(other._pairs, other._counts)

    def _add(self, pairs: np.ndarray, counts: np.ndarray) -> None:
        counts = np.concatenate([self._counts, counts])
        self._pairs, position = np.unique(np.concatenate([self._pairs, pairs]), return_inverse=True)
        self._counts = np.zeros(len(self._pairs), dtype=np.int64)
        np.add.at(self._counts, position, counts)

    @property
    def cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True class, predicted class and number of samples of each pair that occurs, int64 (pairs,) each."""
        return (*np.divmod(self._pairs, self.num_classes), self._counts)

    def triples(self) -> list[list[int]]:
        """Return [true class, predicted class, number of samples] of each pair that occurs."""
        return np.stack(self.cells, axis=1).tolist()

    def by_class(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the numbers of correct, predicted and true samples of each class, float64 (classes,) each."""
        true, predicted, counts = self.cells
        right = true == predicted
        return (
            np.bincount(true[right], counts[right], self.num_classes),
            np.bincount(predicted, counts, self.num_classes),
            np.bincount(true, counts, self.num_classes),
        )


def precision_recall_f1(right: Any, predicted: Any, true: Any) -> dict[str, Any]:
    """Compute precision, recall and F1 from numbers, or arrays of numbers, of samples; 0 where undefined."""
    return {
        "precision": right / np.maximum(1, predicted),
        "recall": right / np.maximum(1, true),
        "f1": 2 * right / np.maximum(1, predicted + true),
    }


def scores_by_class(
    names: Sequence[str], right: np.ndarray, predicted: np.ndarray, true: np.ndarray
) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and support of each class, from the numbers of its samples, (classes,) each."""
    columns = {**precision_recall_f1(right, predicted, true), "support": true}
    return {
        name: {metric: float(values[i]) for metric, values in columns.items()} for i, name in enumerate(names)
    }


def _concatenate_padded(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate along the first axis; pad the other axes with NaN to the longest."""
    shape = np.max([array.shape[1:] for array in arrays], axis=0)
    if all(array.shape[1:] == tuple(shape) for array in arrays):
        return np.concatenate(arrays)
    return np.concatenate(
        [
            np.pad(
                array,
                [(0, 0), *((0, most - size) for most, size in zip(shape, array.shape[1:], strict=True))],
                constant_values=np.nan,
            )
            for array in arrays
        ]
    )
