"""Gates, computed from the inputs themselves."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.parts import perceptron, present_means, shares, side_by_side
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import GatedFusion as Options


class GatedFusion(FusionModule):
    """The gated multimodal unit (Arevalo et al., 2017) for any number of inputs.

    Each feature is shared out among the inputs by gates that see all of them. For two inputs, the softmax over
    inputs is the paper's z and 1 - z; the gates have a hidden layer, so that they can tell noise from content.
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
        self.layers = perceptron(dim, options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        vectors, present = present_means(inputs)
        scores = self.gates(side_by_side(vectors, present)).unflatten(1, (len(inputs), -1))
        gates = shares(scores, present)
        values = [value(vector) for value, vector in zip(self.values, vectors.unbind(dim=1), strict=True)]
        mixed = (gates * torch.stack(values, dim=1).tanh()).sum(dim=1)
        return {"vector": self.layers(mixed), "attention": gates.mean(dim=2)}
