"""Combinations of a search space that differ in the memory of a trial."""

import json
import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

from rayfuse.spec.search_space import MAX_CHECKED_COMBINATIONS, SearchSpace, Values

MAX_COMBINATIONS = 32
"""Largest number of combinations whose memory is estimated; of more, those with the largest numbers are."""

_WITHOUT_EFFECT = frozenset(
    ("adam_beta1", "alpha", "beta", "betas", "decay", "dropout", "epochs", "eps", "focal_gamma", "grace_period",
     "hard_negative_beta", "label_smoothing", "layer_decay", "lora_alpha", "lora_dropout", "loss_weight", "lr", "margin",
     "max_grad_norm", "min_lr_ratio", "mixup", "modality_dropout", "momentum", "patience", "schedule", "seed",
     "temperature", "warmup", "weight", "weight_decay")
)  # fmt: skip
"""Last keys of paths whose values change no tensor's size."""


def memory_combinations(space: SearchSpace) -> list[Values]:
    """Return combinations of listed values and ends of ranges, one for all that need the same memory, the largest first."""
    found: dict[str, Values] = {}
    for values in islice(space.combinations(), MAX_CHECKED_COMBINATIONS):
        found.setdefault(json.dumps(_with_effect(values), sort_keys=True, default=str), values)
    return sorted(found.values(), key=_size, reverse=True)[:MAX_COMBINATIONS]


def _with_effect(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: _with_effect(value)
            for key, value in node.items()
            if str(key).rpartition(".")[2] not in _WITHOUT_EFFECT
        }
    return node


def _size(values: Values) -> float:
    """Return a number that is larger for larger batches, inputs and models."""
    return sum(math.log1p(abs(number)) for number in _numbers(_with_effect(values)))


def _numbers(node: Any) -> Iterator[float]:
    if isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _numbers(inner)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield node
