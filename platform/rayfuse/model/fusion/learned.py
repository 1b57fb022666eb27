"""The mean of the inputs' answers with learned weights."""

from collections.abc import Mapping

import torch
from torch import nn

from rayfuse.model.fusion.decision import DecisionFusion, or_equal
from rayfuse.model.fusion.parts import shares
from rayfuse.model.tasks.base import TaskHead


class LearnedFusion(DecisionFusion):
    """One weight per input and task, the same for all samples; the trust that is reported is the tasks' mean."""

    def attach(self, heads: Mapping[str, TaskHead]) -> None:
        self.trusts = nn.ModuleDict({task: _Trust(len(self.own)) for task in heads})

    def trust(self, present: torch.Tensor) -> torch.Tensor:
        return torch.stack([trust(present) for trust in self.trusts.values()]).mean(dim=0)

    def decide(self, task: str, head: TaskHead, answers: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return head.blend(answers, or_equal(self.trusts[task](present)))


class _Trust(nn.Module):
    """A module and not a parameter: DeepSpeed gathers parameters for the module that is called."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(inputs))

    def forward(self, present: torch.Tensor) -> torch.Tensor:
        return shares(self.scores.expand(present.shape), present)
