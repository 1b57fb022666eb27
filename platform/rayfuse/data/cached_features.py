"""Cached outputs of frozen encoders, which replace the features that the encoders read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rayfuse.data.encoding_store import DTYPES, EncodingIndex
from rayfuse.data.samples import Sample
from rayfuse.modalities import Features, Modality, build_modality
from rayfuse.modalities.text import NO_TOKEN
from rayfuse.spec.feature_cache import with_running_encoder
from rayfuse.spec.inputs import Input

VALUE_INDEX = "value"
"""The only feature of a cached value: its index, int64 ()."""
TOKENS, TOKENS_MASK = "tokens", "tokens_mask"
"""Features of a batch of cached values: float (values, longest, hidden_size), and bool (values, longest)."""
WORD_STARTS = "word_starts"
"""A feature that no encoder reads: int64 (values, words), the first token of each word, -1 for padding."""

_BFLOAT16 = "BF16"


@dataclass(frozen=True)
class CachedFeatures:
    """Cached encoder outputs of the rows of all splits, for the inputs whose encoders do not run."""

    modalities: dict[str, Modality] = field(default_factory=dict)
    """By input with cached values, what replaces its modality."""
    value_indices: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """Indices of each row's values, by split and input: int32 (rows, items), -1 for none."""


class CachedFeaturesModality(Modality):
    """Cached values of one input; replaces its modality in collation.

    Tokens stay in the memory-mapped shards: only those of a batch are read.
    """

    def __init__(self, index: EncodingIndex) -> None:
        assert index.token_format is not None, "no cached value has tokens"
        self.index = index
        self.hidden_size, self._dtype = index.token_format

    def decode(self, value: Any) -> Any:
        raise NotImplementedError("the values are cached encoder outputs")

    def process(self, decoded: Any) -> Features:
        raise NotImplementedError("the values are cached encoder outputs")

    def dummy_features(self) -> Features:
        return _index_features(-1)

    def collate(self, rows: list[Features]) -> Any:
        """Return TOKENS and TOKENS_MASK, padded with zeros to the longest value, and WORD_STARTS of word lists."""
        return self.gather(np.array([row[VALUE_INDEX] for row in rows], dtype=np.int64))

    def gather(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the batch of the values at some indices, int64 (values,); -1 is a value without tokens."""
        found, is_present = self.index, indices >= 0
        lengths = np.where(is_present, found.token_counts[indices], 0)
        words = np.where(is_present, found.word_counts[indices], -1)
        shards = np.where(is_present, found.shard_indices[indices], -1)
        longest = max(1, lengths.max())
        tokens = np.zeros((len(indices), longest, self.hidden_size), dtype=DTYPES[self._dtype])
        starts = np.full((len(indices), max(0, words.max())), NO_TOKEN, dtype=np.int64)
        for number in np.unique(shards[is_present]):
            shard, in_shard = found.shards[number], shards == number
            _copy_ragged(shard.tokens, found.token_offsets[indices], np.where(in_shard, lengths, 0), tokens)
            if starts.size:
                counts = np.where(in_shard, words, 0).clip(min=0)
                _copy_ragged(shard.word_starts, found.word_offsets[indices], counts, starts)
        values = torch.from_numpy(tokens)
        mask = torch.from_numpy(np.arange(tokens.shape[1]) < lengths[:, None])
        gathered = {
            TOKENS: values.view(torch.bfloat16) if self._dtype == _BFLOAT16 else values,
            TOKENS_MASK: mask,
        }
        return gathered | ({WORD_STARTS: torch.from_numpy(starts)} if (words >= 0).any() else {})


class PartlyCachedModality(Modality):
    """An input of which one encoder runs on its values, and the outputs of another one are cached."""

    def __init__(self, running: Modality, cached: CachedFeaturesModality) -> None:
        """Join the modality of the encoder that runs with cached values."""
        super().__init__(running.options)
        self._running, self._cached = running, cached

    def decode(self, value: Any) -> Any:
        return self._running.decode(value)

    def process(self, decoded: Any) -> Features:
        return self._running.process(decoded)

    def dummy_features(self) -> Features:
        return self._running.dummy_features() | self._cached.dummy_features()

    def collate(self, rows: list[Features]) -> Any:
        """Return the features of the encoder that runs, and TOKENS and TOKENS_MASK of the other."""
        others = [{key: array for key, array in row.items() if key != VALUE_INDEX} for row in rows]
        return self._running.collate(others) | self._cached.collate(rows)


def replace_modality(options: Input, cached: CachedFeaturesModality) -> Modality:
    """Return the modality of an input with cached values, which its whole encoder or a part of it does not read."""
    running = with_running_encoder(options)
    return cached if running is None else PartlyCachedModality(build_modality(running), cached)


def _copy_ragged(source: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, target: np.ndarray) -> None:
    """Copy `lengths[i]` entries of `source` from `offsets[i]` on to the start of `target[i]`, for all i."""
    longest = int(lengths.max())
    if longest == 1:  # pooled: all of one length
        rows = np.flatnonzero(lengths)
        target[rows, 0] = source[offsets[rows]]
    elif longest:
        steps = np.arange(longest)
        inside = steps < lengths[:, None]
        target[:, :longest][inside] = source[(offsets[:, None] + steps)[inside]]


def add_cached_features(sample: Sample, cached_indices: Mapping[str, np.ndarray], row: int) -> Sample:
    """Add the cached values of a row to its sample, next to features that it already has; absent inputs get no entry."""
    for name, items in cached_indices.items():
        numbers = [number for number in items[row].tolist() if number >= 0]
        if numbers:
            own = sample.features.get(name, [{} for _ in numbers])
            sample.features[name] = [
                features | _index_features(number) for features, number in zip(own, numbers, strict=True)
            ]
            sample.keys[name] = [number.to_bytes(4, "big") for number in numbers]
    return sample


def _index_features(number: int) -> Features:
    return {VALUE_INDEX: np.array(number)}
