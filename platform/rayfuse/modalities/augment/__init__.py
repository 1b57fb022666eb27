"""Random changes of training rows: on features, so that what was decoded once is kept, and never in evaluation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayfuse.modalities.augment import audio, image, series, text
from rayfuse.modalities.augment.base import Change
from rayfuse.modalities.base import Features
from rayfuse.spec.augment import Augment

AUGMENTATIONS: dict[str, dict[str, Change]] = {
    "image": {
        "affine": image.affine,
        "elastic": image.elastic,
        "flip": image.flip,
        "crop": image.crop,
        "erase": image.erase,
        "color": image.color,
        "noise": image.noise,
    },
    "audio": {
        "mask": audio.mask,
        "shift": audio.shift,
        "gain": audio.gain,
        "noise": audio.noise,
    },
    "text": {
        "drop": text.drop,
        "swap": text.swap,
    },
    "series": {
        "scale": series.scale,
        "warp": series.warp,
        "mask": series.mask,
        "drop_channels": series.drop_channels,
        "noise": series.noise,
    },
}
"""By kind of input and `type`."""


def augment(kind: str, steps: Sequence[Augment], features: Features, chance: np.random.Generator) -> Features:
    """The features of one value of an input of `kind` after `steps`; those given are left as they are."""
    for options in steps:
        if chance.random() < options.probability:
            change: Any = AUGMENTATIONS[kind][options.type]
            features = change(options, features, chance)
    return features


__all__ = ["AUGMENTATIONS", "Change", "augment"]
