"""The mean of the inputs' answers."""

import torch

from rayfuse.model.fusion.decision import DecisionFusion, or_equal
from rayfuse.model.fusion.parts import equal_shares
from rayfuse.model.tasks.base import TaskHead


class AverageFusion(DecisionFusion):
    """Every input that is there counts alike."""

    def decide(self, task: str, head: TaskHead, answers: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return head.blend(answers, or_equal(equal_shares(present)))
