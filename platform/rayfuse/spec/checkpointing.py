"""When training saves what it has learned, and how much of that is kept."""

from pydantic import Field

from rayfuse.spec.base import Block, Seconds


class Keep(Block):
    """How many checkpoints stay; one that is among the last and the best counts for both."""

    last: int = Field(1, ge=1)
    """Newest ones: where a run goes on. With 2, a broken newest one costs a checkpoint and not the run."""
    best: int = Field(1, ge=1)
    """Best ones on the validation rows, among those from the end of an epoch."""


class Checkpointing(Block):
    """A checkpoint is written at the end of every epoch, and inside an epoch as said here."""

    every: Seconds | None = Field(600.0, gt=0)
    """Longest time without one inside an epoch; null: none by the clock."""
    steps: int | None = Field(None, ge=1)
    """Also after every so many optimizer steps."""
    keep: Keep = Keep(last=2)

    def keep_for(self, soup: int | None) -> Keep:
        """What stays where a soup is made of so many of the best."""
        return Keep(last=self.keep.last, best=max(self.keep.best, soup or 0))
