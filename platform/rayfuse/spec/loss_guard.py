"""Loss guard: the action on NaN losses and loss spikes."""

from typing import Literal

from pydantic import Field

from rayfuse.spec.base import SpecModel


class LossGuardConfig(SpecModel):
    """Check of the loss and the gradient norm of every step, over all workers."""

    action: Literal["stop", "rollback"] = "stop"
    """Action on a loss or norm that is NaN or infinite, and on a spike. `stop`: end the run with an error; `rollback`:
    resume from an earlier checkpoint and skip the batches around it (as for PaLM; Chowdhery et al., 2022, section
    5.1)."""
    spike_factor: float | None = Field(None, gt=1)
    """A spike is a loss above this factor times the median of recent steps, and as many deviations above it; null: only
    NaN and infinite losses count."""
    patience: int = Field(3, ge=1)
    """Consecutive steps with such a loss before the action is taken."""
    window: int = Field(100, ge=10)
    """Number of recent steps for the median; spikes are not detected in the first ones."""
    skip_batches: int = Field(10, ge=0)
    """Batches before and after the spike that a rollback skips."""
    max_rollbacks: int = Field(3, ge=1)
    """Number of rollbacks after which the next spike stops the run."""
