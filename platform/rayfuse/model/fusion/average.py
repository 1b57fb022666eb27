"""Decision-level fusion by averaging."""

import torch

from rayfuse.model.fusion.decision import DecisionFusion, fallback_to_uniform
from rayfuse.model.fusion.layers import uniform_weights
from rayfuse.model.tasks.base import TaskHead


class AverageFusion(DecisionFusion):
    """Average of the predictions of the present inputs."""

    def combine_outputs(
        self, task: str, head: TaskHead, outputs: torch.Tensor, present: torch.Tensor
    ) -> torch.Tensor:
        return head.combine_logits(outputs, fallback_to_uniform(uniform_weights(present)))
