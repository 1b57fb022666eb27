"""A small Transformer over patches of a picture."""

import torch
from torch import nn

from rayfuse.model.encoders.base import Encoder
from rayfuse.model.encoders.networks import Transformer
from rayfuse.model.encoders.pooling import Pooling
from rayfuse.model.encoders.positions import encode_grid
from rayfuse.model.tokens import Tokens
from rayfuse.spec.encoders import PatchTransformerEncoder as Options
from rayfuse.spec.inputs import Input


class PatchTransformerImageEncoder(Encoder):
    """pixel_values: float (rows, 3, height, width) → a token per patch, row by row, pooled as the spec says."""

    def __init__(self, options: Options, source: Input) -> None:
        super().__init__(options, source)
        self.width = options.width
        self.patch = options.patch
        self.patches = nn.Conv2d(3, options.width, options.patch, options.patch)
        self.network = Transformer(options.width, options.layers, options.heads, options.dropout)
        self.pool = Pooling(options.pool, self.width)

    def forward(self, pixel_values: torch.Tensor) -> Tokens:  # type: ignore[override]
        height, width = (-size % self.patch for size in pixel_values.shape[2:])
        maps = self.patches(nn.functional.pad(pixel_values, (0, width, 0, height)))
        places = encode_grid(maps.shape[2], maps.shape[3], self.width, maps.device)
        tokens = maps.flatten(2).transpose(1, 2) + places.to(maps.dtype)
        everywhere = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return self.pool(self.network(tokens, everywhere), everywhere)
