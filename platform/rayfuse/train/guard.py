"""Decides from each step's loss and gradient norm whether training goes on. It decides only; the loop does it.

It is fed with numbers over all workers, so that all of them decide the same.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from rayfuse.errors import RayfuseError
from rayfuse.spec.guard import Guard as Options

_NORMAL = 1.4826  # the standard deviation of normal numbers, in median absolute deviations
_ROWS_SHOWN = 8


@dataclass(frozen=True)
class Verdict:
    """What to do after a step."""

    action: Literal["go on", "stop", "roll back"] = "go on"
    reason: str = ""
    remedy: str = ""
    leave_out: tuple[int, int] = (0, 0)
    """Of a rollback: the first and the last optimizer step, counted from 1, whose batches are left out. The
    checkpoint to go back to has done fewer steps than the first."""

    def error(self, rows: Sequence[str] = ()) -> RayfuseError:
        """The reason as an error, naming the rows (FILE:LINE) that the step was about."""
        return RayfuseError(f"{self.reason}{named(rows)}; {self.remedy}")


GO_ON = Verdict()


class RollBack(Exception):
    """Asks the loop to go back, from amid a step; `rows` are FILE:LINE of those that the step was about."""

    def __init__(self, verdict: Verdict, rows: Sequence[str]) -> None:
        super().__init__(verdict, rows)
        self.verdict, self.rows = verdict, rows


class Guard:
    """Looks at one step after the other; steps that are done again after a rollback or a restart, too."""

    def __init__(self, options: Options, precision: str = "fp32") -> None:
        """`precision`: with fp16, DeepSpeed leaves out steps whose gradients overflow, which is no failure."""
        self.options, self._precision = options, precision
        self._losses: deque[tuple[int, float]] = deque(maxlen=options.window)
        self._above: list[int] = []
        self._left_out: list[tuple[int, int]] = []

    def look(self, step: int, loss: float, gradient_norm: float | None = None) -> Verdict:
        """What to do after `step`, counted from 1. A rollback is noted: `skips` knows it from then on."""
        while self._losses and self._losses[-1][0] >= step:
            self._losses.pop()
        reason = self._not_a_number(step, loss, gradient_norm)
        first = step
        if reason is None:
            reason = self._spike(step, loss)
            if reason is not None:
                first = self._above[0]
        return GO_ON if reason is None else self._decide(reason, first, step)

    def skips(self, step: int) -> bool:
        """Whether the batch of `step`, counted from 1, is to be left out."""
        return any(first <= step <= last for first, last in self._left_out)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, for JSON."""
        return {
            "losses": [list(pair) for pair in self._losses],
            "above": list(self._above),
            "left_out": [list(pair) for pair in self._left_out],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's `state` after a restart. After a rollback the guard stays as it is: it knows more."""
        self._losses = deque(((int(s), float(v)) for s, v in state["losses"]), maxlen=self.options.window)
        self._above = [int(step) for step in state["above"]]
        self._left_out = [(int(first), int(last)) for first, last in state["left_out"]]

    def _not_a_number(self, step: int, loss: float, gradient_norm: float | None) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss} at step {step}"
        if gradient_norm is None or math.isfinite(gradient_norm) or self._precision == "fp16":
            return None
        return f"the gradient's norm is {gradient_norm} at step {step}, where the loss is {loss:.4g}"

    def _spike(self, step: int, loss: float) -> str | None:
        """Why the loss has exploded; it is remembered where it has not."""
        factor = self.options.spike
        if factor is None:
            return None
        if len(self._losses) == self.options.window and loss > (limit := self._limit(factor)):
            self._above.append(step)
            if len(self._above) < self.options.patience:
                return None
            usual = median(value for _, value in self._losses)
            return (
                f"the loss is {loss:.4g} at step {step}, and has been above {limit:.4g} for {len(self._above)} steps; "
                f"before that it was about {usual:.4g}"
            )
        self._above.clear()
        self._losses.append((step, loss))
        return None

    def _limit(self, factor: float) -> float:
        """Losses may be negative, so that it is measured upward from the median."""
        values = [value for _, value in self._losses]
        middle = median(values)
        deviation = _NORMAL * median(abs(value - middle) for value in values)
        return middle + max((factor - 1) * abs(middle), factor * deviation)

    def _decide(self, reason: str, first: int, step: int) -> Verdict:
        options = self.options
        if options.action == "stop":
            remedy = f"{self._calmer()}, or set train.guard.action: rollback, which leaves such batches out"
            return Verdict("stop", reason, remedy)
        if len(self._left_out) == options.most:
            remedy = (
                f"{options.most} rollbacks (train.guard.most) were not enough: {self._calmer()}, "
                "or look at the rows"
            )
            return Verdict("stop", reason, remedy)
        leave_out = (max(1, first - options.skip), step + options.skip)
        self._left_out.append(leave_out)
        self._above.clear()
        while self._losses and self._losses[-1][0] >= leave_out[0]:
            self._losses.pop()
        return Verdict("roll back", reason, self._calmer(), leave_out)

    def _calmer(self) -> str:
        exact = "" if self._precision == "fp32" else " or set train.precision: fp32"
        return f"lower train.optimizer.lr{exact}"


def named(rows: Sequence[str]) -> str:
    """The rows as the end of a sentence."""
    if not rows:
        return ""
    more = f" and {len(rows) - _ROWS_SHOWN} more" if len(rows) > _ROWS_SHOWN else ""
    return f", on the rows {', '.join(rows[:_ROWS_SHOWN])}{more}"
