"""An optimizer: RMSprop."""

import torch
from pydantic import Field

from rayfuse.spec.base import SpecModel
from rayfuse.training.optimizers import Optimizer, ParamGroup


class RMSprop(Optimizer):
    """torch's RMSprop."""

    class Options(SpecModel):
        alpha: float = Field(0.99, ge=0, lt=1)
        """Decay rate of the average of squared gradients."""

    options: Options

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(groups, alpha=self.options.alpha)
