"""A residual network for pictures."""

import torch
from torch import nn

from rayfuse.model.encoders.base import Encoder
from rayfuse.model.encoders.networks import residual_stages
from rayfuse.model.encoders.pooling import Pooling
from rayfuse.model.tokens import Tokens
from rayfuse.spec.encoders import ResnetEncoder as Options
from rayfuse.spec.inputs import Input


class ResnetImageEncoder(Encoder):
    """pixel_values: float (rows, 3, height, width) → the last stage's map, row by row, pooled as the spec says."""

    channels = 3

    def __init__(self, options: Options, source: Input) -> None:
        super().__init__(options, source)
        self.stages = residual_stages(self.channels, options.width, options.blocks)
        self.width = options.width * 2 ** (len(options.blocks) - 1)
        self.dropout = nn.Dropout(options.dropout)
        self.pool = Pooling(options.pool, self.width)

    def forward(self, pixel_values: torch.Tensor) -> Tokens:  # type: ignore[override]
        maps = pixel_values
        for stage in self.stages:
            maps = stage(maps)
        tokens = self.dropout(maps.flatten(2).transpose(1, 2))
        everywhere = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return self.pool(tokens, everywhere)
