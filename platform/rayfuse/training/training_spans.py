"""Parts of a run in which parameter groups are trained, such as a projector first and adapters later.

Outside of its span, a group has a learning rate, a weight decay and gradients of zero, so that it does not change, and does
not count in the norm by which gradients are clipped. Moments of its optimizer stay zero until the span begins, and steps are counted
from there, so that the bias correction of Adam starts as in a new run.
"""

from dataclasses import dataclass
from typing import Any

import torch

from rayfuse.errors import SpecError
from rayfuse.spec.optimizers import ParamGroupConfig
from rayfuse.spec.schedules import ScheduleConfig
from rayfuse.training.schedule import lr_factor

_STEP = "step"


@dataclass
class TrainingSpan:
    """Part of a run in which a parameter group is trained; by default all of it."""

    start: int | float = 0
    """First step, from 0, or a fraction of all steps."""
    end: int | float = 1.0
    """Step after the last one, or a fraction of all steps."""
    is_active: bool = True
    """True if the group is trained in the current step."""

    @classmethod
    def of(cls, group: ParamGroupConfig | None) -> "TrainingSpan":
        """Return the span of a group of the spec; all of the run for parameters of none."""
        return cls() if group is None else cls(group.start, group.end)

    @property
    def is_whole(self) -> bool:
        """True if the group is trained in all steps."""
        return self.start == 0 and isinstance(self.end, float) and self.end == 1.0

    def steps(self, total_steps: int) -> range:
        """Return the steps of the span in a run of `total_steps`."""
        return range(_to_steps(self.start, total_steps), min(total_steps, _to_steps(self.end, total_steps)))

    def lr_factor(self, schedule: ScheduleConfig, step: int, total_steps: int) -> float:
        """Return the factor of the learning rate at `step`: the schedule spans the steps of the group; 0 outside of them."""
        steps = self.steps(total_steps)
        self.is_active = step in steps
        return lr_factor(schedule, step - steps.start, len(steps)) if self.is_active else 0.0

    def mask_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient of a parameter of the group; zeros while it is not trained."""
        return gradient if self.is_active else torch.zeros_like(gradient)


def check_spans(groups: tuple[ParamGroupConfig, ...], total_steps: int) -> None:
    """Raise SpecError if a group of the spec is trained in no step of a run of `total_steps`."""
    for number, group in enumerate(groups):
        if not TrainingSpan.of(group).steps(total_steps):
            raise SpecError(
                f"train.param_groups.{number}: no step of the {total_steps} of the run is between start {group.start:g} and "
                f"end {group.end:g}; lower start, or raise train.epochs"
            )


def apply_spans(optimizer: torch.optim.Optimizer) -> None:
    """Make the spans of an optimizer's groups take effect; call it before DeepSpeed replaces their parameters."""
    for group in optimizer.param_groups:
        if not group["span"].is_whole:
            for parameter in group["params"]:
                parameter.register_hook(group["span"].mask_gradient)
    optimizer.register_step_post_hook(_restart_steps)


def _restart_steps(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Set the step counts of groups that are not trained to zero."""
    for group in optimizer.param_groups:
        if group["span"].is_active:
            continue
        for parameter in group["params"]:
            if _STEP in optimizer.state.get(parameter, {}):
                optimizer.state[parameter][_STEP].zero_()


def _to_steps(bound: int | float, total_steps: int) -> int:
    return bound if isinstance(bound, int) else round(bound * total_steps)
