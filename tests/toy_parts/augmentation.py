"""An augmentation of DNA: point mutations."""

import numpy as np
from pydantic import Field

from rayfuse.modalities import Features
from rayfuse.modalities.augment import Augmentation
from rayfuse.spec.base import SpecModel


class Mutate(Augmentation):
    """Replace random bases with bases of other positions."""

    class Options(SpecModel):
        rate: float = Field(0.1, ge=0, le=1)
        """Probability that a base is replaced."""

    options: Options

    def __call__(self, features: Features, rng: np.random.Generator) -> Features:
        one_hot = features["one_hot"]
        mutated = rng.random((len(one_hot), 1)) < self.options.rate
        return {**features, "one_hot": np.where(mutated, rng.permutation(one_hot), one_hot)}
