"""Transformer fusion."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import AttentionLayer, attention_per_input
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import TransformerFusionConfig as Options


class TransformerFusion(FusionModule):
    """Pre-norm transformer encoder (Vaswani et al., 2017) over the tokens of all inputs, with a class token.

    A learned embedding of its input is added to every token; tokens of absent inputs are masked. The attention is that
    of the class token in the last layer.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.cls_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.input_embeddings = nn.Parameter(torch.randn(len(inputs), dim) * 0.02)
        self.layers = nn.ModuleList(
            AttentionLayer(dim, options.heads, options.dropout) for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        batch = next(iter(inputs.values()))[0].shape[0]
        cls_token = self.cls_token.expand(batch, 1, -1)
        unmasked = torch.ones(batch, 1, dtype=torch.bool, device=cls_token.device)
        embedded = [
            tokens + embedding
            for (tokens, _), embedding in zip(inputs.values(), self.input_embeddings, strict=True)
        ]
        tokens = torch.cat([cls_token, *embedded], dim=1)
        mask = torch.cat([unmasked, *(mask for _, mask in inputs.values())], dim=1)
        for layer in self.layers:
            tokens, attention = layer(tokens, tokens, mask)
        return {"vector": self.norm(tokens[:, 0]), "attention": attention_per_input(attention[:, 1:], inputs)}
