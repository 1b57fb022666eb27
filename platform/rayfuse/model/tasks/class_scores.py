"""Labels and scores of predictions over classes, and their JSON Schemas."""

from collections.abc import Sequence
from typing import Any

import torch

from rayfuse.modalities.base import Schema, object_schema
from rayfuse.spec.tasks.classes import MAX_LISTED_CLASSES, BaseClassesTaskConfig

PROBABILITY: Schema = {"type": "number", "minimum": 0, "maximum": 1}
"""JSON Schema of a probability."""
_JSON_TYPES = {str: "string", bool: "boolean", int: "integer"}


def format_class_predictions(
    classes: Sequence[Any], probabilities: torch.Tensor, num_scores: int
) -> list[dict[str, Any]]:
    """Return {"label": most probable class, "scores": {class: probability}} of each sample.

    probabilities: (batch, classes); num_scores: see `top_scores`.
    """
    best = probabilities.argmax(dim=1).tolist()
    return [
        {"label": classes[label], "scores": top_scores(classes, row, num_scores)}
        for label, row in zip(best, probabilities, strict=True)
    ]


def top_scores(classes: Sequence[Any], probabilities: torch.Tensor, num_scores: int) -> dict[str, float]:
    """Return the probability of all classes in their order, or of the `num_scores` most probable ones by falling probability.

    probabilities: (classes,).
    """
    if num_scores >= len(classes):
        return dict(zip(map(str, classes), probabilities.tolist(), strict=True))
    values, positions = probabilities.topk(num_scores)
    return {str(classes[i]): value for i, value in zip(positions.tolist(), values.tolist(), strict=True)}


def class_prediction_schema(config: BaseClassesTaskConfig) -> Schema:
    """Return the JSON Schema of `format_class_predictions`."""
    return object_schema({"label": label_schema(config.classes or ()), "scores": class_scores_schema(config)})


def label_schema(labels: Sequence[Any]) -> Schema:
    """Return the JSON Schema of one of several labels; only up to 100 are listed."""
    if len(labels) <= MAX_LISTED_CLASSES:
        return {"enum": list(labels)}
    kinds = sorted({_JSON_TYPES[type(label)] for label in labels})
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "description": f"one of {len(labels)} labels"}


def class_scores_schema(config: BaseClassesTaskConfig) -> Schema:
    """Return the JSON Schema of {class: probability}; only up to 100 classes are listed."""
    names = config.class_names
    if config.num_scores == len(names) <= MAX_LISTED_CLASSES:
        return {"type": "object", "properties": dict.fromkeys(names, PROBABILITY)}
    return {
        "type": "object",
        "additionalProperties": PROBABILITY,
        "description": f"the {config.num_scores} most probable of {len(names)} classes",
    }
