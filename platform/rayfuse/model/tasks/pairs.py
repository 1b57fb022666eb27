"""Base of heads over pairs of inputs, with an embedding of each input that does not depend on the other."""

from abc import ABC

import numpy as np
import torch
from torch import nn

from rayfuse.model.tasks.base import TaskHead, touch_fusion_params
from rayfuse.model.tokens import FusedState, mean_pool
from rayfuse.spec.tasks.pairs import PairTaskConfig


class PairEmbeddings(nn.Module):
    """Unit vectors of two inputs, (batch, 2, width), and which inputs are present, bool (batch, 2)."""

    def __init__(self, options: PairTaskConfig, dim: int) -> None:
        super().__init__()
        self.inputs = options.inputs
        self.width = dim if options.projection == "none" else options.dim
        self.projections = nn.ModuleList(_projection(options, dim) for _ in options.inputs)

    def forward(self, fused: FusedState) -> tuple[torch.Tensor, torch.Tensor]:
        sides = [fused["inputs"][name] for name in self.inputs]
        vectors = [
            nn.functional.normalize(project(mean_pool(*side)).float(), dim=1)
            for project, side in zip(self.projections, sides, strict=True)
        ]
        return torch.stack(vectors, dim=1), torch.stack([mask.any(dim=1) for _, mask in sides], dim=1)


def _projection(options: PairTaskConfig, dim: int) -> nn.Module:
    if options.projection == "none":
        return nn.Identity()
    if options.projection == "linear":
        return nn.Linear(dim, options.dim, bias=False)
    return nn.Sequential(
        nn.Linear(dim, dim), nn.GELU(), nn.Dropout(options.dropout), nn.Linear(dim, options.dim, bias=False)
    )


class PairHead(TaskHead, ABC):
    """Outputs (batch, 2, width + 1): for each input a factor of the pair's logit, and 1 if the input is present.

    The logit of any pair is the dot product of its two factors, so that logits of pairs across rows are one matrix
    product.
    """

    cross_sample_loss = True
    target_width: int
    """Number of values of a target."""

    def pack_outputs(self, factors: torch.Tensor, present: torch.Tensor, fused: FusedState) -> torch.Tensor:
        """Concatenate factors, (batch, 2, width), and presence, (batch, 2), to outputs."""
        return touch_fusion_params(torch.cat([factors, present.unsqueeze(2).float()], dim=2), fused)

    def combine_logits(self, outputs: torch.Tensor, decision_weights: torch.Tensor) -> torch.Tensor:
        """Return the first decision; all are equal, as outputs depend on the inputs alone."""
        return outputs[:, 0]

    def divergence(self, outputs: torch.Tensor, target_outputs: torch.Tensor) -> torch.Tensor:
        """Compute the squared difference of the logits of each row's pair; 0 if an input is absent."""
        (a, b, there), (c, d, wanted) = unpack_outputs(outputs), unpack_outputs(target_outputs)
        return ((a * b).sum(dim=1) - (c * d).sum(dim=1)).square() * (there & wanted)

    def zero_loss(self, outputs: torch.Tensor) -> torch.Tensor:
        targets = outputs.new_full((len(outputs), self.target_width), torch.nan).squeeze(1)
        return self.loss(outputs, targets).sum() * 0.0


PairFactors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Factors of the first and of the second input, (rows, width) each, and rows that have both, bool (rows,)."""


def unpack_outputs(outputs: torch.Tensor) -> PairFactors:
    """Split outputs into the factors of both inputs, (rows, width) each, and which rows have both, bool (rows,)."""
    outputs = outputs.float()
    return outputs[:, 0, :-1], outputs[:, 1, :-1], (outputs[:, :, -1] > 0.5).all(dim=1)


def unpack_output_arrays(outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split outputs as `unpack_outputs` does, for arrays."""
    there: np.ndarray = outputs[:, :, -1].min(axis=1) > 0.5
    return outputs[:, 0, :-1], outputs[:, 1, :-1], there
