"""A second model that reads the answers of all inputs."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from rayfuse.errors import SpecError
from rayfuse.model.fusion.decision import DecisionFusion, or_equal
from rayfuse.model.fusion.parts import equal_shares
from rayfuse.model.tasks.base import TaskHead
from rayfuse.spec.fusion import StackingFusion as Options


class StackingFusion(DecisionFusion):
    """Stacked generalization (Wolpert, 1992): a perceptron per task over the raw outputs for all inputs.

    It gives a correction to their average, which is 0 before training.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.options = options

    def attach(self, heads: Mapping[str, TaskHead]) -> None:
        self.learners = nn.ModuleDict({task: self._learner(task, head) for task, head in heads.items()})

    def _learner(self, task: str, head: TaskHead) -> nn.Sequential:
        if head.outputs is None:
            raise SpecError(
                f"fusion.type: stacking corrects raw outputs of a known size, and the head of tasks.{task} has none; "
                "use learned, average or vote"
            )
        last = nn.Linear(self.options.hidden, head.outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(
            nn.Linear(len(self.own) * (head.outputs + 1), self.options.hidden),
            nn.GELU(),
            nn.Dropout(self.options.dropout),
            last,
        )

    def decide(self, task: str, head: TaskHead, answers: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        centre, deviation = head.unit
        there = present.view(*present.shape, *[1] * (answers.ndim - 2))
        standard = ((answers - centre) / deviation).masked_fill(~there, 0.0)
        flags = there.to(standard.dtype).expand(*answers.shape[:-1], 1)
        told = torch.cat([standard, flags], dim=-1).movedim(1, -2).flatten(-2)
        return head.blend(answers, or_equal(equal_shares(present))) + self.learners[task](told) * deviation
