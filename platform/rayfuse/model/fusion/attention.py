"""Attention fusion."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import build_mlp, masked_softmax, mean_pool_present
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import AttentionFusionConfig as Options


class AttentionFusion(FusionModule):
    """Additive multi-head attention (Bahdanau et al., 2015) over the mean-pooled inputs.

    The score of an input depends on its mean and a learned embedding of the input.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.heads = options.heads
        self.input_embeddings = nn.Parameter(torch.randn(len(inputs), dim) * 0.02)
        self.scores = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, options.heads, bias=False))
        self.values = nn.Linear(dim, dim)
        self.layers = build_mlp(dim, options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        vectors, present = mean_pool_present(inputs)
        weights = masked_softmax(self.scores(vectors + self.input_embeddings), present)
        values = self.values(vectors).unflatten(2, (self.heads, -1))
        attended = (values * weights.unsqueeze(3)).sum(dim=1).flatten(1)
        return {"vector": self.layers(attended), "attention": weights.mean(dim=2)}
