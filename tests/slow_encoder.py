"""A slow image encoder, so that a fault can be injected between two steps of a tiny job."""

import contextlib
import time
from pathlib import Path

import torch
from torch import nn

from rayfuse.model.encoders import Encoder
from rayfuse.model.tokens import Tokens, as_single_token
from rayfuse.spec.base import SpecModel


class SlowMean(Encoder):
    """Return the mean color after `seconds` in training; hang forever if the file `hang` exists, which is removed."""

    class Options(SpecModel):
        seconds: float = 0.1
        hang: str = "/nowhere"

    width = 8

    def __init__(self, options: Options, source: object) -> None:
        super().__init__(options, source)
        self.options = options
        self.linear = nn.Linear(3, self.width)

    def forward(self, pixel_values: torch.Tensor) -> Tokens:
        if self.training:
            time.sleep(self.options.seconds)
            with contextlib.suppress(FileNotFoundError):
                Path(self.options.hang).unlink()
                hang_forever()
        return as_single_token(self.linear(pixel_values.mean(dim=(2, 3))))


def hang_forever() -> None:
    time.sleep(100_000)
