"""Residual network for images."""

import torch
from torch import nn

from rayfuse.model.encoders.base import Encoder
from rayfuse.model.encoders.networks import residual_stages
from rayfuse.model.encoders.pooling import Pooling
from rayfuse.model.tokens import Tokens
from rayfuse.spec.encoders import ResnetEncoderConfig as Options
from rayfuse.spec.inputs import Input


class ResnetImageEncoder(Encoder):
    """Encoder of pixel_values: float (rows, 3, height, width); the last feature map is flattened by rows and pooled."""

    channels = 3

    def __init__(self, options: Options, source: Input) -> None:
        super().__init__(options, source)
        self.stages = residual_stages(self.channels, options.hidden_size, options.depths)
        self.width = options.hidden_size * 2 ** (len(options.depths) - 1)
        self.dropout = nn.Dropout(options.dropout)
        self.pool = Pooling(options.pool, self.width)

    def forward(self, pixel_values: torch.Tensor) -> Tokens:  # type: ignore[override]
        maps = pixel_values
        for stage in self.stages:
            maps = stage(maps)
        tokens = self.dropout(maps.flatten(2).transpose(1, 2))
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return self.pool(tokens, mask)
