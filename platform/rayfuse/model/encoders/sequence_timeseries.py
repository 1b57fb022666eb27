"""Built-in encoders of time series."""

from typing import Any

import torch

from rayfuse.model.encoders.networks import StridedConv
from rayfuse.model.encoders.sequence_base import SequenceEncoder
from rayfuse.model.tokens import Tokens
from rayfuse.spec.inputs import TimeseriesInput


class SequenceTimeseriesEncoder(SequenceEncoder):
    """Encoder of values, observed: float (rows, channels, steps); step_mask: int64 (rows, steps).

    `observed` is concatenated as further channels, which distinguish a missing value from zero.
    """

    def __init__(self, options: Any, source: TimeseriesInput) -> None:
        super().__init__(options, source)
        self.downsample = StridedConv(2 * source.num_channels, options.hidden_size, options.stride)

    def embed(  # type: ignore[override]
        self, values: torch.Tensor, observed: torch.Tensor, step_mask: torch.Tensor
    ) -> Tokens:
        return self.downsample(torch.cat([values, observed], dim=1).transpose(1, 2), step_mask.bool())
