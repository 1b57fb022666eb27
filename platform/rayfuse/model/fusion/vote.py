"""The answer that most inputs give."""

import torch

from rayfuse.model.fusion.decision import DecisionFusion, or_equal
from rayfuse.model.fusion.parts import equal_shares
from rayfuse.model.tasks.base import TaskHead


class VoteFusion(DecisionFusion):
    """One vote per input. While training, a vote is the whole answer, as a choice has no gradient."""

    def decide(self, task: str, head: TaskHead, answers: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        votes = answers if self.training else head.ballots(answers)
        return head.blend(votes, or_equal(equal_shares(present)))
