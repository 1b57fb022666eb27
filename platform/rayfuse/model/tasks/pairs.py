"""What heads over pairs of inputs share: a vector of each, made without a look at the other."""

from abc import ABC

import numpy as np
import torch
from torch import nn

from rayfuse.model.tasks.base import TaskHead, keep_fusion
from rayfuse.model.tokens import Fused, mean_token
from rayfuse.spec.tasks.pairs import PairTask


class PairVectors(nn.Module):
    """Vectors of length 1 of two inputs, (batch, 2, width), and which are there, bool (batch, 2)."""

    def __init__(self, options: PairTask, dim: int) -> None:
        super().__init__()
        self.inputs = options.inputs
        self.projections = nn.ModuleList(_projection(options, dim) for _ in options.inputs)

    def forward(self, fused: Fused) -> tuple[torch.Tensor, torch.Tensor]:
        sides = [fused["inputs"][name] for name in self.inputs]
        vectors = [
            nn.functional.normalize(project(mean_token(*side)).float(), dim=1)
            for project, side in zip(self.projections, sides, strict=True)
        ]
        return torch.stack(vectors, dim=1), torch.stack([mask.any(dim=1) for _, mask in sides], dim=1)


def _projection(options: PairTask, dim: int) -> nn.Module:
    if options.projection == "none":
        return nn.Identity()
    if options.projection == "linear":
        return nn.Linear(dim, options.dim, bias=False)
    return nn.Sequential(
        nn.Linear(dim, dim), nn.GELU(), nn.Dropout(options.dropout), nn.Linear(dim, options.dim, bias=False)
    )


class PairHead(TaskHead, ABC):
    """Outputs (batch, 2, width + 1): a factor of a pair's logit from each input, and 1 where the input is there.

    The logit of any pair is the product of its two factors, so that pairs of different rows cost nothing more.
    """

    compares = True
    target_width: int
    """Numbers of a target."""

    def packed(self, factors: torch.Tensor, there: torch.Tensor, fused: Fused) -> torch.Tensor:
        """Outputs of factors (batch, 2, width) and presence (batch, 2)."""
        return keep_fusion(torch.cat([factors, there.unsqueeze(2).float()], dim=2), fused)

    def blend(self, outputs: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
        """Any of them: they are made from the inputs themselves, and so are all the same."""
        return outputs[:, 0]

    def divergence(self, outputs: torch.Tensor, target_outputs: torch.Tensor) -> torch.Tensor:
        """The squared difference of the own pair's logits; 0 where one side lacks an input."""
        (a, b, there), (c, d, wanted) = unpacked(outputs), unpacked(target_outputs)
        return ((a * b).sum(dim=1) - (c * d).sum(dim=1)).square() * (there & wanted)

    def idle(self, outputs: torch.Tensor) -> torch.Tensor:
        targets = outputs.new_full((len(outputs), self.target_width), torch.nan).squeeze(1)
        return self.loss(outputs, targets).sum() * 0.0


Sides = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def unpacked(outputs: torch.Tensor) -> Sides:
    """The factors of the first and of the second input, (rows, width) each, and which rows have both, bool (rows,)."""
    outputs = outputs.float()
    return outputs[:, 0, :-1], outputs[:, 1, :-1], (outputs[:, :, -1] > 0.5).all(dim=1)


def unpacked_arrays(outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of arrays."""
    there: np.ndarray = outputs[:, :, -1].min(axis=1) > 0.5
    return outputs[:, 0, :-1], outputs[:, 1, :-1], there
