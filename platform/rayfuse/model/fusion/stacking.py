"""Decision-level fusion by stacking."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from rayfuse.errors import SpecError
from rayfuse.model.fusion.decision import DecisionFusion, fallback_to_uniform
from rayfuse.model.fusion.layers import uniform_weights
from rayfuse.model.tasks.base import TaskHead
from rayfuse.spec.fusion import StackingFusionConfig as Options


class StackingFusion(DecisionFusion):
    """Stacked generalization (Wolpert, 1992): a meta-learner per task over the raw outputs of all inputs.

    It predicts a correction of their average, initialized to 0.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.options = options

    def attach_heads(self, heads: Mapping[str, TaskHead]) -> None:
        self.meta_learners = nn.ModuleDict(
            {task: self._build_meta_learner(task, head) for task, head in heads.items()}
        )

    def _build_meta_learner(self, task: str, head: TaskHead) -> nn.Sequential:
        if head.num_outputs is None:
            raise SpecError(
                f"fusion.type: stacking requires a fixed number of raw outputs, which the head of tasks.{task} does not have; "
                "use learned, average or vote"
            )
        last = nn.Linear(self.options.hidden, head.num_outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(
            nn.Linear(len(self.input_blocks) * (head.num_outputs + 1), self.options.hidden),
            nn.GELU(),
            nn.Dropout(self.options.dropout),
            last,
        )

    def combine_outputs(
        self, task: str, head: TaskHead, outputs: torch.Tensor, present: torch.Tensor
    ) -> torch.Tensor:
        center, std = head.output_scale
        mask = present.view(*present.shape, *[1] * (outputs.ndim - 2))
        standardized = ((outputs - center) / std).masked_fill(~mask, 0.0)
        flags = mask.to(standardized.dtype).expand(*outputs.shape[:-1], 1)
        features = torch.cat([standardized, flags], dim=-1).movedim(1, -2).flatten(-2)
        return (
            head.combine_logits(outputs, fallback_to_uniform(uniform_weights(present)))
            + self.meta_learners[task](features) * std
        )
