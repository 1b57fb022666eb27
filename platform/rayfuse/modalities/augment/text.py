"""Augmentations of text, on `input_ids`: int64 (tokens,), bytes or the tokens of a pretrained model."""

import numpy as np

from rayfuse.errors import SpecError
from rayfuse.modalities.base import Features
from rayfuse.spec.augment import DropTokens, SwapTokens

_WORD_STARTS = "word_starts"


def token_dropout(options: DropTokens, features: Features, rng: np.random.Generator) -> Features:
    """Drop random tokens between the first and the last; in lists of words, each keeps its first token."""
    kept = rng.random(len(features["input_ids"])) >= options.drop_prob
    kept[[0, -1]] = True
    starts = features.get(_WORD_STARTS)
    if starts is None:
        return _select_tokens(features, kept)
    kept[starts[starts >= 0]] = True
    moved = np.cumsum(kept) - 1
    return {**_select_tokens(features, kept), _WORD_STARTS: np.where(starts >= 0, moved[starts], -1)}


def token_swap(options: SwapTokens, features: Features, rng: np.random.Generator) -> Features:
    """Swap random neighboring tokens, each at most once. Raises SpecError for lists of words."""
    if _WORD_STARTS in features:
        raise SpecError("augment: `token_swap` would separate words from their targets; use `token_dropout`")
    order = np.arange(len(features["input_ids"]))
    place = 1
    while place < len(order) - 2:
        if rng.random() < options.swap_prob:
            order[[place, place + 1]] = order[[place + 1, place]]
            place += 1
        place += 1
    return {name: array[order] for name, array in features.items()}


def _select_tokens(features: Features, kept: np.ndarray) -> Features:
    return {name: array[kept] for name, array in features.items() if name != _WORD_STARTS}
