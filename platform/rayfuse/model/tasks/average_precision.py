"""Average precision of many classes: exact up to a number of values, and from histograms of logits beyond it."""

import numpy as np

MAX_EXACT_VALUES = 2**22
"""Number of logits up to which average precision is exact: 21 MB."""
_MAX_COUNTERS = 2**21
_MIN_BINS, _MAX_BINS = 32, 1024
_MAX_LOGIT = 16.0
"""Logits beyond it, of probabilities above 0.9999999, share the outermost bins."""
_COLUMN_VALUES = 2**19
"""Number of logits that are sorted at a time."""


class AveragePrecision:
    """Average precision of each of several independent classes.

    The logits of up to `MAX_EXACT_VALUES` (samples times classes) are stored. More are counted in up to 1024 bins of
    equal width per class, and logits of one bin rank equally.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._logits: list[np.ndarray] = []
        self._true: list[np.ndarray] = []
        self._histograms: np.ndarray | None = None

    def add(self, logits: np.ndarray, true: np.ndarray) -> None:
        """Add samples: logits float32 (samples, classes), and which classes each has, bool (samples, classes)."""
        self._logits.append(logits)
        self._true.append(true)
        self._bin_if_many()

    def merge(self, other: "AveragePrecision") -> None:
        """Add the samples of another."""
        self._logits += other._logits
        self._true += other._true
        if other._histograms is not None:
            self._histograms = self._zeros() if self._histograms is None else self._histograms
            self._histograms += other._histograms
        self._bin_if_many()

    def by_class(self) -> np.ndarray:
        """Return the average precision of each class, float64 (classes,); NaN for one that does not occur."""
        if self._histograms is not None:
            return _average_precision(*self._histograms[:, :, ::-1].astype(np.float64))
        if not self._logits:
            return np.full(self._num_classes, np.nan)
        logits, true = np.concatenate(self._logits), np.concatenate(self._true)
        width = max(1, _COLUMN_VALUES // len(logits))
        starts = range(0, self._num_classes, width)
        parts = [_exact(logits[:, i : i + width], true[:, i : i + width]) for i in starts]
        return np.concatenate(parts)

    @property
    def _num_bins(self) -> int:
        return min(_MAX_BINS, max(_MIN_BINS, _MAX_COUNTERS // self._num_classes))

    def _zeros(self) -> np.ndarray:
        return np.zeros((2, self._num_classes, self._num_bins), dtype=np.uint32)

    def _bin_if_many(self) -> None:
        if self._histograms is None:
            if sum(logits.size for logits in self._logits) <= MAX_EXACT_VALUES:
                return
            self._histograms = self._zeros()
        flat = self._histograms.reshape(2, -1)
        for logits, true in zip(self._logits, self._true, strict=True):
            scaled = (logits / _MAX_LOGIT + 1) / 2 * self._num_bins
            bins = np.clip(np.nan_to_num(scaled), 0, self._num_bins - 1).astype(np.int64)
            bins += np.arange(self._num_classes) * self._num_bins
            for counts, chosen in zip(flat, (true, ~true), strict=True):
                counts += np.bincount(bins[chosen], minlength=len(counts)).astype(np.uint32)
        self._logits, self._true = [], []


def _exact(logits: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Compute the average precision of each column of logits."""
    order = np.argsort(-logits, axis=0, kind="stable")
    ranked, positive = np.take_along_axis(logits, order, axis=0), np.take_along_axis(true, order, axis=0)
    last = np.ones_like(positive)
    last[:-1] = ranked[:-1] != ranked[1:]
    # Counts of samples of equal logits are moved to the last of them, so that these rank equally.
    found = positive.cumsum(axis=0)
    before = np.zeros_like(found)
    before[1:] = np.maximum.accumulate(np.where(last, found, 0), axis=0)[:-1]
    hits = np.where(last, found - before, 0)
    precision = found / np.arange(1, len(found) + 1)[:, None]
    total = found[-1]
    return np.divide((hits * precision).sum(axis=0), total, out=np.full(len(total), np.nan), where=total > 0)


def _average_precision(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Compute average precision from counts by falling threshold, (classes, thresholds) each."""
    found = positive.cumsum(axis=1)
    precision = found / np.maximum(1, found + negative.cumsum(axis=1))
    total = found[:, -1]
    return np.divide(
        (positive * precision).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0
    )
