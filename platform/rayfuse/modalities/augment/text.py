"""Random changes of text, on `input_ids`: int64 (tokens,), bytes or the tokens of a pretrained model."""

import numpy as np

from rayfuse.errors import SpecError
from rayfuse.modalities.base import Features
from rayfuse.spec.augment import DropTokens, SwapTokens

_WORDS = "word_starts"


def drop(options: DropTokens, features: Features, chance: np.random.Generator) -> Features:
    """Without some tokens between the first and the last; words that have targets keep their first token."""
    kept = chance.random(len(features["input_ids"])) >= options.share
    kept[[0, -1]] = True
    starts = features.get(_WORDS)
    if starts is None:
        return _chosen(features, kept)
    kept[starts[starts >= 0]] = True
    moved = np.cumsum(kept) - 1
    return {**_chosen(features, kept), _WORDS: np.where(starts >= 0, moved[starts], -1)}


def swap(options: SwapTokens, features: Features, chance: np.random.Generator) -> Features:
    """With some neighbours exchanged, each token at most once."""
    if _WORDS in features:
        raise SpecError("augment: `swap` would part words from their targets; use `drop`")
    order = np.arange(len(features["input_ids"]))
    place = 1
    while place < len(order) - 2:
        if chance.random() < options.share:
            order[[place, place + 1]] = order[[place + 1, place]]
            place += 1
        place += 1
    return {name: array[order] for name, array in features.items()}


def _chosen(features: Features, kept: np.ndarray) -> Features:
    return {name: array[kept] for name, array in features.items() if name != _WORDS}
