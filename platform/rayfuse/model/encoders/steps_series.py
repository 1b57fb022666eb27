"""Built-in encoders of sensor readings over time."""

from typing import Any

import torch

from rayfuse.model.encoders.networks import Strided
from rayfuse.model.encoders.steps import StepsEncoder
from rayfuse.model.tokens import Tokens


class StepsSeriesEncoder(StepsEncoder):
    """values, observed: float (rows, channels, steps); step_mask: int64 (rows, steps).

    What was observed is read as further channels: a missing reading is no zero.
    """

    def __init__(self, options: Any, source: Any) -> None:
        super().__init__(options, source)
        self.merge = Strided(2 * _channels(source), options.width, options.stride)

    def read(  # type: ignore[override]
        self, values: torch.Tensor, observed: torch.Tensor, step_mask: torch.Tensor
    ) -> Tokens:
        return self.merge(torch.cat([values, observed], dim=1).transpose(1, 2), step_mask.bool())


def _channels(source: Any) -> int:
    return int(source.count)
