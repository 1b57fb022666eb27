"""Decision-level fusion by voting."""

import torch

from rayfuse.model.fusion.decision import DecisionFusion, fallback_to_uniform
from rayfuse.model.fusion.layers import uniform_weights
from rayfuse.model.tasks.base import TaskHead


class VoteFusion(DecisionFusion):
    """Majority vote of the present inputs; in training, their average, as votes have no gradient."""

    def combine_outputs(
        self, task: str, head: TaskHead, outputs: torch.Tensor, present: torch.Tensor
    ) -> torch.Tensor:
        votes = outputs if self.training else head.hard_votes(outputs)
        return head.combine_logits(votes, fallback_to_uniform(uniform_weights(present)))
