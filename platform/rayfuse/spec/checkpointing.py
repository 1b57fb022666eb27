"""Checkpointing: when checkpoints are saved, and how many are kept."""

from pydantic import Field

from rayfuse.spec.base import Seconds, SpecModel


class RetentionPolicy(SpecModel):
    """Numbers of checkpoints to retain; one that is among the last and the best counts for both."""

    last: int = Field(1, ge=1)
    """Number of newest checkpoints, from which a run resumes. With 2, a run survives a corrupt newest one."""
    best: int = Field(1, ge=1)
    """Number of best checkpoints on the validation rows, among those from the end of an epoch."""


class CheckpointingConfig(SpecModel):
    """Checkpoints within an epoch; one is also saved at the end of every epoch."""

    interval: Seconds | None = Field(600.0, gt=0)
    """Longest time between checkpoints within an epoch; null: no limit."""
    every_n_steps: int | None = Field(None, ge=1)
    """Optimizer steps between checkpoints within an epoch; by default only `interval` counts."""
    interrupt_timeout: Seconds = Field(5.0, ge=0)
    """Longest wait for a checkpoint of the current step after Ctrl-C, SIGTERM or SIGHUP; large models need more."""
    keep: RetentionPolicy = Field(default_factory=lambda: RetentionPolicy(last=2))
    """Numbers of checkpoints to retain."""

    def retention_for(self, model_soup: int | None) -> RetentionPolicy:
        """Return the policy with as many best checkpoints as a model soup needs."""
        return RetentionPolicy(last=self.keep.last, best=max(self.keep.best, model_soup or 0))
