"""Base class of decision-level fusions, which apply the task heads to each input and combine the predictions."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import ResidualBlock, mean_pool_present, uniform_weights
from rayfuse.model.tasks.base import TaskHead
from rayfuse.model.tokens import FusedState, Tokens
from rayfuse.spec.fusion import DecisionFusionConfig as Options


class DecisionFusion(FusionModule):
    """Late fusion of the predictions from each input; subclasses combine them.

    The vector of an absent input is a learned prior, which is used only for samples without any input.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.input_blocks = nn.ModuleList(ResidualBlock(dim, options.hidden, options.dropout) for _ in inputs)
        self.prior = nn.Parameter(torch.zeros(dim))

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        vectors, present = mean_pool_present(inputs)
        outputs = torch.stack(
            [block(vector) for block, vector in zip(self.input_blocks, vectors.unbind(dim=1), strict=True)],
            dim=1,
        )
        per_input = torch.where(present.unsqueeze(2), outputs, self.prior)
        weights = self.decision_weights(present)
        vector = (per_input * fallback_to_uniform(weights).unsqueeze(2)).sum(dim=1)
        return {"vector": vector, "per_input_vectors": per_input, "decision_weights": weights}

    def apply_head(self, task: str, head: TaskHead, fused: FusedState) -> torch.Tensor:
        states: list[FusedState] = [
            {**fused, "vector": vector} for vector in fused["per_input_vectors"].unbind(dim=1)
        ]
        outputs = torch.stack([head(state) for state in states], dim=1)
        return self.combine_outputs(task, head, outputs, fused["decision_weights"] > 0)

    def decision_weights(self, present: torch.Tensor) -> torch.Tensor:
        """Return the weight of each input's prediction, float (batch, inputs): 0 if absent; rows sum to 1, or 0."""
        return uniform_weights(present)

    @abstractmethod
    def combine_outputs(
        self, task: str, head: TaskHead, outputs: torch.Tensor, present: torch.Tensor
    ) -> torch.Tensor:
        """Combine a head's raw outputs for each input, (batch, inputs, …), to (batch, …).

        present: which inputs each sample has, bool (batch, inputs).
        """


def fallback_to_uniform(decision_weights: torch.Tensor) -> torch.Tensor:
    """Replace the weights of samples without any input, all 0, by equal ones, float (batch, inputs)."""
    return torch.where(
        (decision_weights > 0).any(dim=1, keepdim=True), decision_weights, 1 / decision_weights.shape[1]
    )
