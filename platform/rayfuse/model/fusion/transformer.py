"""Self-attention over the tokens of all inputs."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.parts import AttentionLayer, looks_by_input
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import TransformerFusion as Options


class TransformerFusion(FusionModule):
    """A pre-norm transformer encoder (Vaswani et al., 2017) read out at a learned summary token.

    Every token carries a learned mark of its input; tokens of absent inputs are masked. Attention is the summary
    token's in the last layer.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.summary = nn.Parameter(torch.randn(dim) * 0.02)
        self.marks = nn.Parameter(torch.randn(len(inputs), dim) * 0.02)
        self.layers = nn.ModuleList(
            AttentionLayer(dim, options.heads, options.dropout) for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        batch = len(next(iter(inputs.values()))[0])
        summary = self.summary.expand(batch, 1, -1)
        always = torch.ones(batch, 1, dtype=torch.bool, device=summary.device)
        marked = [tokens + mark for (tokens, _), mark in zip(inputs.values(), self.marks, strict=True)]
        tokens = torch.cat([summary, *marked], dim=1)
        mask = torch.cat([always, *(mask for _, mask in inputs.values())], dim=1)
        for layer in self.layers:
            tokens, looks = layer(tokens, tokens, mask)
        return {"vector": self.norm(tokens[:, 0]), "attention": looks_by_input(looks[:, 1:], inputs)}
