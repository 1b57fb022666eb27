"""A schedule: polynomial decay."""

from pydantic import Field

from rayfuse.spec.base import SpecModel
from rayfuse.training.schedule import Schedule


class Polynomial(Schedule):
    """Polynomial decay to zero."""

    class Options(SpecModel):
        power: float = Field(2.0, gt=0)
        """Exponent of the remaining fraction of the steps."""

    options: Options

    def factor(self, step: int, total_steps: int, warmup_steps: float) -> float:
        remaining = (total_steps - step) / max(1.0, total_steps - warmup_steps)
        return float(remaining**self.options.power)
