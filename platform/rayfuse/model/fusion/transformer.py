"""Self-attention over the tokens of all inputs."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import TransformerFusion as Options


class TransformerFusion(FusionModule):
    """A pre-norm transformer encoder (Vaswani et al., 2017) read out at a learned summary token.

    Every token carries a learned mark of its input; tokens of absent inputs are masked.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.summary = nn.Parameter(torch.randn(dim) * 0.02)
        self.marks = nn.Parameter(torch.randn(len(inputs), dim) * 0.02)
        layer = nn.TransformerEncoderLayer(
            dim, options.heads, 4 * dim, options.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, options.layers, nn.LayerNorm(dim), enable_nested_tensor=False
        )

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        batch = len(next(iter(inputs.values()))[0])
        summary = self.summary.expand(batch, 1, -1)
        always = torch.ones(batch, 1, dtype=torch.bool, device=summary.device)
        marked = [tokens + mark for (tokens, _), mark in zip(inputs.values(), self.marks, strict=True)]
        mask = torch.cat([always, *(mask for _, mask in inputs.values())], dim=1)
        joined = self.layers(torch.cat([summary, *marked], dim=1), src_key_padding_mask=~mask)
        return {"vector": joined[:, 0]}
