"""Softmax attention over the inputs."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.parts import perceptron, present_means, shares
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import AttentionFusion as Options


class AttentionFusion(FusionModule):
    """Additive attention (Bahdanau et al., 2015) with several heads over each input's mean over its tokens.

    A learned mark tells the scores which input they judge; an input's score depends on that input alone.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.heads = options.heads
        self.marks = nn.Parameter(torch.randn(len(inputs), dim) * 0.02)
        self.scores = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, options.heads, bias=False))
        self.values = nn.Linear(dim, dim)
        self.layers = perceptron(dim, options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        vectors, present = present_means(inputs)
        weights = shares(self.scores(vectors + self.marks), present)
        values = self.values(vectors).unflatten(2, (self.heads, -1))
        found = (values * weights.unsqueeze(3)).sum(dim=1).flatten(1)
        return {"vector": self.layers(found), "attention": weights.mean(dim=2)}
