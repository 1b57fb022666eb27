"""What training does about a loss that is no number, or that explodes."""

from typing import Literal

from pydantic import Field

from rayfuse.spec.base import Block


class Guard(Block):
    """Looks at the loss and the gradient's norm of every step, over all workers."""

    action: Literal["stop", "rollback"] = "stop"
    """`stop`: end the run and say where; `rollback`: go back to a checkpoint before it and leave out the batches
    around it (as PaLM was trained; Chowdhery et al., 2022, section 5.1). Either is for a loss or norm that is NaN or
    infinite, and for a spike."""
    spike: float | None = Field(None, gt=1)
    """A loss above so many times the median of recent steps, and as many deviations above it, counts as exploding;
    null: only one that is no number."""
    patience: int = Field(3, ge=1)
    """Steps in a row with such a loss: one batch that is hard is no explosion."""
    window: int = Field(100, ge=10)
    """Recent steps that make the median; the first ones are not looked at."""
    skip: int = Field(10, ge=0)
    """Batches before and after the bad ones that a rollback leaves out."""
    most: int = Field(3, ge=1)
    """Rollbacks, after which the next one stops the run."""
