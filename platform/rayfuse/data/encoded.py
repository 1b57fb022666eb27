"""What frozen encoders made of the values of an input, in the place of the features that they read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rayfuse.data.samples import Sample
from rayfuse.data.shards import DTYPES, Places
from rayfuse.modalities.base import Features, Modality
from rayfuse.modalities.text import NO_TOKEN

VALUE = "value"
"""The only feature of an encoded value of a sample: its number, int64 ()."""
TOKENS, MASK = "tokens", "tokens_mask"
"""Features of a batch of encoded values: float (values, longest, width), and bool (values, longest)."""
WORD_STARTS = "word_starts"
"""A feature that no encoder reads: int64 (values, words), the token where each word begins, -1 for padding."""

_BFLOAT16 = "BF16"


@dataclass(frozen=True)
class Encoded:
    """The inputs whose encoders need not run, for the rows of all splits."""

    values: dict[str, "EncodedValues"] = field(default_factory=dict)
    """By input."""
    numbers: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """By split and input, int32 (rows, items): which value each row has, -1 for none."""


class EncodedValues(Modality):
    """The encoded values of one input; takes the place of its modality where batches are made.

    Tokens stay in the shards, which are memory-mapped: only what a batch needs is read.
    """

    def __init__(self, places: Places) -> None:
        assert places.form is not None, "no value has any tokens"
        self.places = places
        self.width, self._dtype = places.form

    def decode(self, value: Any) -> Any:
        raise NotImplementedError("the values are encoded")

    def process(self, decoded: Any) -> Features:
        raise NotImplementedError("the values are encoded")

    def blank(self) -> Features:
        return _features(-1)

    def collate(self, rows: list[Features]) -> Any:
        """Tensors TOKENS and MASK of some values, padded with zeros to the longest, and the words of those with some."""
        return self.gather(np.array([row[VALUE] for row in rows], dtype=np.int64))

    def gather(self, numbers: np.ndarray) -> dict[str, torch.Tensor]:
        """The same for the values `numbers`, (values,); -1 is a value without tokens."""
        places, there = self.places, numbers >= 0
        lengths = np.where(there, places.length[numbers], 0)
        words = np.where(there, places.words[numbers], -1)
        shards = np.where(there, places.shard[numbers], -1)
        longest = max(1, lengths.max())
        tokens = np.zeros((len(numbers), longest, self.width), dtype=DTYPES[self._dtype])
        starts = np.full((len(numbers), max(0, words.max())), NO_TOKEN, dtype=np.int64)
        for number in np.unique(shards[there]):
            shard, mine = places.shards[number], shards == number
            _copy(shard.tokens, places.first[numbers], np.where(mine, lengths, 0), tokens)
            if starts.size:
                _copy(shard.starts, places.first_word[numbers], np.where(mine, words, 0).clip(min=0), starts)
        found = torch.from_numpy(tokens)
        mask = torch.from_numpy(np.arange(tokens.shape[1]) < lengths[:, None])
        gathered = {TOKENS: found.view(torch.bfloat16) if self._dtype == _BFLOAT16 else found, MASK: mask}
        return gathered | ({WORD_STARTS: torch.from_numpy(starts)} if (words >= 0).any() else {})


def _copy(source: np.ndarray, first: np.ndarray, lengths: np.ndarray, into: np.ndarray) -> None:
    """`lengths[i]` entries of `source` from `first[i]` on to the beginning of `into[i]`, for all i."""
    longest = int(lengths.max())
    if longest == 1:  # pooled: nothing differs in length
        rows = np.flatnonzero(lengths)
        into[rows, 0] = source[first[rows]]
    elif longest:
        steps = np.arange(longest)
        inside = steps < lengths[:, None]
        into[:, :longest][inside] = source[(first[:, None] + steps)[inside]]


def with_encoded(sample: Sample, encoded: Mapping[str, np.ndarray], row: int) -> Sample:
    """A sample with the encoded values that its row has; inputs that it lacks have no entry."""
    for name, items in encoded.items():
        numbers = [number for number in items[row].tolist() if number >= 0]
        if numbers:
            sample.features[name] = [_features(number) for number in numbers]
            sample.keys[name] = [number.to_bytes(4, "big") for number in numbers]
    return sample


def _features(number: int) -> Features:
    return {VALUE: np.array(number)}
