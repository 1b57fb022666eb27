"""Decision-level fusion by learned weights."""

from collections.abc import Mapping

import torch
from torch import nn

from rayfuse.model.fusion.decision import DecisionFusion, fallback_to_uniform
from rayfuse.model.fusion.layers import masked_softmax
from rayfuse.model.tasks.base import TaskHead


class LearnedFusion(DecisionFusion):
    """Weighted mean of predictions, with a learned weight per input and task; `decision_weights` are the tasks' mean."""

    def attach_heads(self, heads: Mapping[str, TaskHead]) -> None:
        self.task_weights = nn.ModuleDict({task: _DecisionWeights(len(self.input_blocks)) for task in heads})

    def decision_weights(self, present: torch.Tensor) -> torch.Tensor:
        return torch.stack([weights(present) for weights in self.task_weights.values()]).mean(dim=0)

    def combine_outputs(
        self, task: str, head: TaskHead, outputs: torch.Tensor, present: torch.Tensor
    ) -> torch.Tensor:
        return head.combine_logits(outputs, fallback_to_uniform(self.task_weights[task](present)))


class _DecisionWeights(nn.Module):
    """Weights of one task; a module, as DeepSpeed gathers the parameters of called modules."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(inputs))

    def forward(self, present: torch.Tensor) -> torch.Tensor:
        return masked_softmax(self.scores.expand(present.shape), present)
