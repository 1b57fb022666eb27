"""Decide after each step, from its loss and gradient norm, whether training continues, stops, or rolls back.

The decision is separate from the action, which is the training loop's. Losses and norms are over all workers, so all
workers decide the same.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from rayfuse.errors import RayfuseError
from rayfuse.spec.loss_guard import LossGuardConfig

_MAD_TO_STD = 1.4826
"""Standard deviation of a normal distribution, in median absolute deviations."""
_MAX_ROWS_SHOWN = 8


@dataclass(frozen=True)
class GuardDecision:
    """Decision after a step."""

    action: Literal["continue", "stop", "rollback"] = "continue"
    """Next action of the training loop."""
    reason: str = ""
    """Problem of the loss or the gradient; empty if training continues."""
    remedy: str = ""
    """Suggested change for the user."""
    skip_steps: tuple[int, int] = (0, 0)
    """For a rollback, the first and the last optimizer step, counted from 1, whose batches are skipped. The checkpoint
    to restore has fewer steps than the first."""

    def to_error(self, rows: Sequence[str] = ()) -> RayfuseError:
        """Return the reason as an error that names the rows (FILE:LINE) of the step."""
        return RayfuseError(f"{self.reason}{format_rows(rows)}; {self.remedy}")


CONTINUE = GuardDecision()
"""Decision after a step with nothing unusual."""


class RollbackRequested(Exception):
    """Request to the training loop to roll back; `rows` are FILE:LINE of the rows of the step."""

    def __init__(self, decision: GuardDecision, rows: Sequence[str]) -> None:
        super().__init__(decision, rows)
        self.decision, self.rows = decision, rows


class LossGuard:
    """Guard against NaN losses and loss spikes. Steps may repeat, after a rollback or a restart."""

    def __init__(self, options: LossGuardConfig, precision: str = "fp32") -> None:
        """`precision` fp16 allows infinite gradients, because DeepSpeed skips such steps and lowers the loss scale."""
        self.options, self._precision = options, precision
        self._losses: deque[tuple[int, float]] = deque(maxlen=options.window)
        self._spike_steps: list[int] = []
        self._skipped_ranges: list[tuple[int, int]] = []

    def check(self, step: int, loss: float, gradient_norm: float | None = None) -> GuardDecision:
        """Decide what to do after `step`, counted from 1; after a rollback, `should_skip` is true for its steps."""
        while self._losses and self._losses[-1][0] >= step:
            self._losses.pop()
        reason = self._check_finite(step, loss, gradient_norm)
        first = step
        if reason is None:
            reason = self._check_spike(step, loss)
            if reason is not None:
                first = self._spike_steps[0]
        return CONTINUE if reason is None else self._decide(reason, first, step)

    def should_skip(self, step: int) -> bool:
        """Return whether to skip the batch of `step`, counted from 1."""
        return any(first <= step <= last for first, last in self._skipped_ranges)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON values."""
        return {
            "losses": [list(pair) for pair in self._losses],
            "spike_steps": list(self._spike_steps),
            "skipped_ranges": [list(pair) for pair in self._skipped_ranges],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint after a restart; not after a rollback, which the guard must remember."""
        self._losses = deque(((int(s), float(v)) for s, v in state["losses"]), maxlen=self.options.window)
        self._spike_steps = [int(step) for step in state["spike_steps"]]
        self._skipped_ranges = [(int(first), int(last)) for first, last in state["skipped_ranges"]]

    def _check_finite(self, step: int, loss: float, gradient_norm: float | None) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss} at step {step}"
        if gradient_norm is None or math.isfinite(gradient_norm) or self._precision == "fp16":
            return None
        return f"the gradient norm is {gradient_norm} at step {step}, where the loss is {loss:.4g}"

    def _check_spike(self, step: int, loss: float) -> str | None:
        """Return the reason if the losses are a spike; otherwise record the loss."""
        factor = self.options.spike_factor
        if factor is None:
            return None
        if len(self._losses) == self.options.window and loss > (limit := self._spike_threshold(factor)):
            self._spike_steps.append(step)
            if len(self._spike_steps) < self.options.patience:
                return None
            usual = median(value for _, value in self._losses)
            return (
                f"the loss is {loss:.4g} at step {step} and above {limit:.4g} for {len(self._spike_steps)} steps; "
                f"its median before is {usual:.4g}"
            )
        self._spike_steps.clear()
        self._losses.append((step, loss))
        return None

    def _spike_threshold(self, factor: float) -> float:
        """Return the loss above which a step is a spike, relative to the median because losses may be negative."""
        values = [value for _, value in self._losses]
        middle = median(values)
        deviation = _MAD_TO_STD * median(abs(value - middle) for value in values)
        return middle + max((factor - 1) * abs(middle), factor * deviation)

    def _decide(self, reason: str, first: int, step: int) -> GuardDecision:
        options = self.options
        if options.action == "stop":
            remedy = f"{self._remedy()}, or set train.loss_guard.action: rollback to skip such batches"
            return GuardDecision("stop", reason, remedy)
        if len(self._skipped_ranges) == options.max_rollbacks:
            remedy = (
                f"{options.max_rollbacks} rollbacks (train.loss_guard.max_rollbacks) were not enough: {self._remedy()}, "
                "or check the rows"
            )
            return GuardDecision("stop", reason, remedy)
        skip_steps = (max(1, first - options.skip_batches), step + options.skip_batches)
        self._skipped_ranges.append(skip_steps)
        self._spike_steps.clear()
        while self._losses and self._losses[-1][0] >= skip_steps[0]:
            self._losses.pop()
        return GuardDecision("rollback", reason, self._remedy(), skip_steps)

    def _remedy(self) -> str:
        exact = "" if self._precision == "fp32" else " or set train.precision: fp32"
        return f"lower train.optimizer.lr{exact}"


def format_rows(rows: Sequence[str]) -> str:
    """Return a clause that names the first rows, for the end of a message; empty without rows."""
    if not rows:
        return ""
    more = f" and {len(rows) - _MAX_ROWS_SHOWN} more" if len(rows) > _MAX_ROWS_SHOWN else ""
    return f", on the rows {', '.join(rows[:_MAX_ROWS_SHOWN])}{more}"
