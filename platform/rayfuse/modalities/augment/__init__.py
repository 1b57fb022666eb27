"""Augmentation: random changes of the features of training rows, after decoding and never in evaluation."""

from collections.abc import Sequence

import numpy as np

from rayfuse.modalities.augment.base import Augmentation
from rayfuse.modalities.base import Features
from rayfuse.spec.augment import AUGMENTATIONS, BaseAugment
from rayfuse.spec.family import CustomConfig


def augment(
    input_type: str, augmentations: Sequence[BaseAugment], features: Features, rng: np.random.Generator
) -> Features:
    """Return the features of one value of an input after `augmentations`; the arrays given are not changed."""
    family = AUGMENTATIONS.get(input_type, AUGMENTATIONS["custom"])
    for options in augmentations:
        if rng.random() >= options.p:
            continue
        if isinstance(options, CustomConfig):
            part: Augmentation = family.build(options)
            features = part(features, rng)
        else:
            features = family.resolve(options)(options, features, rng)
    return features


__all__ = ["Augmentation", "augment"]
