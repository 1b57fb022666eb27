"""A picture encoder that takes its time, so that a fault can be injected between two steps of a tiny job."""

import contextlib
import time
from pathlib import Path

import torch
from torch import nn

from rayfuse.model.encoders import Encoder
from rayfuse.model.tokens import Tokens, one_token
from rayfuse.spec.base import Block


class SlowMean(Encoder):
    """The mean colour, after `seconds` where it is trained; for ever where it finds and takes the file `hang`."""

    class Options(Block):
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
                hang_for_ever()
        return one_token(self.linear(pixel_values.mean(dim=(2, 3))))


def hang_for_ever() -> None:
    time.sleep(100_000)
