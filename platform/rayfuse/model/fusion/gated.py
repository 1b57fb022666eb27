"""Gated fusion."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import build_mlp, concat_with_presence, masked_softmax, mean_pool_present
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import GatedFusionConfig as Options


class GatedFusion(FusionModule):
    """Gated multimodal unit (Arevalo et al., 2017) for any number of inputs.

    Each feature is a sum over inputs weighted by gates, which read all inputs. For two inputs, the softmax over inputs
    equals z and 1 - z of the paper; a hidden layer lets gates distinguish noise from content.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.values = nn.ModuleList(nn.Linear(dim, dim) for _ in inputs)
        self.gates = nn.Sequential(
            nn.Linear(len(inputs) * (dim + 1), options.hidden),
            nn.GELU(),
            nn.Dropout(options.dropout),
            nn.Linear(options.hidden, len(inputs) * dim),
        )
        self.layers = build_mlp(dim, options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        vectors, present = mean_pool_present(inputs)
        scores = self.gates(concat_with_presence(vectors, present)).unflatten(1, (len(inputs), -1))
        gates = masked_softmax(scores, present)
        values = [value(vector) for value, vector in zip(self.values, vectors.unbind(dim=1), strict=True)]
        gated = (gates * torch.stack(values, dim=1).tanh()).sum(dim=1)
        return {"vector": self.layers(gated), "attention": gates.mean(dim=2)}
