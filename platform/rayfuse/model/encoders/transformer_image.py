"""Small vision Transformer."""

import torch
from torch import nn

from rayfuse.model.encoders.base import Encoder
from rayfuse.model.encoders.networks import Transformer, encode_grid
from rayfuse.model.encoders.pooling import Pooling
from rayfuse.model.tokens import Tokens
from rayfuse.spec.encoders import PatchTransformerEncoderConfig as Options
from rayfuse.spec.inputs import Input


class PatchTransformerImageEncoder(Encoder):
    """Encoder of pixel_values: float (rows, 3, height, width) → a token per patch, by rows, then pooled.

    Vision Transformer (Dosovitskiy et al., 2021) with sinusoidal positions, for any image size.
    """

    def __init__(self, options: Options, source: Input) -> None:
        super().__init__(options, source)
        self.width = options.hidden_size
        self.patch_size = options.patch_size
        self.patch_embedding = nn.Conv2d(3, options.hidden_size, options.patch_size, options.patch_size)
        self.network = Transformer(options.hidden_size, options.layers, options.heads, options.dropout)
        self.pool = Pooling(options.pool, self.width)

    def forward(self, pixel_values: torch.Tensor) -> Tokens:  # type: ignore[override]
        height, width = (-size % self.patch_size for size in pixel_values.shape[2:])
        maps = self.patch_embedding(nn.functional.pad(pixel_values, (0, width, 0, height)))
        positions = encode_grid(maps.shape[2], maps.shape[3], self.width, maps.device)
        tokens = maps.flatten(2).transpose(1, 2) + positions.to(maps.dtype)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return self.pool(self.network(tokens, mask), mask)
