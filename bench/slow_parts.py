"""Parts for bench/decoding.py: images that arrive slowly, and an encoder whose step takes a known time."""

import time
from typing import Any

import torch
from torch import nn

from rayfuse.modalities import Features, Modality
from rayfuse.model.encoders import Encoder
from rayfuse.model.tokens import Tokens, as_single_token
from rayfuse.spec.base import SpecModel

FETCH_SECONDS = 0.02
STEP_SECONDS = 0.2


class SlowNumbers(Modality):
    """Numbers, each of which takes the time of a read from a distant store."""

    Options = SpecModel
    value_formats = ("json",)

    def decode(self, value: Any) -> float:
        """Return the number after FETCH_SECONDS."""
        time.sleep(FETCH_SECONDS)
        return float(value)

    def process(self, decoded: float) -> Features:
        """Return the number as a feature: float32 (1,)."""
        import numpy as np

        return {"values": np.array([decoded], dtype=np.float32)}

    def dummy_features(self) -> Features:
        """Return the features of 0."""
        return self.process(0.0)


class SlowLinear(Encoder):
    """A linear layer that takes STEP_SECONDS in training, as a step on a GPU would while the CPU is free."""

    Options = SpecModel
    width = 8

    def __init__(self, options: Any, source: object) -> None:
        super().__init__(options, source)
        self.linear = nn.Linear(1, self.width)

    def forward(self, values: torch.Tensor) -> Tokens:
        """Return one token per row: float (rows, 1, width)."""
        if self.training:
            time.sleep(STEP_SECONDS)
        return as_single_token(self.linear(values))
