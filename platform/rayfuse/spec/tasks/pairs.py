"""Options that tasks over pairs of inputs share."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rayfuse.spec.base import Key, Problems
from rayfuse.spec.tasks.base import BaseTaskConfig, validate_inputs

if TYPE_CHECKING:
    from rayfuse.spec.job import Job


class PairTaskConfig(BaseTaskConfig):
    """Options of a task over two inputs, each of which is encoded to one vector independently."""

    inputs: tuple[Key, Key]
    """The two inputs."""
    dim: int = Field(128, ge=2, le=8192)
    """Width of the vectors."""
    projection: Literal["none", "linear", "mlp"] = "mlp"
    """Projection of the mean token of an aligned input: none, a linear map, or two with a GELU between them."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate within the MLP."""

    def validate_in_job(self, job: "Job") -> Problems:
        yield from validate_inputs(job, "inputs", self.inputs)
        if self.inputs[0] == self.inputs[1]:
            yield "inputs", f"`{self.inputs[0]}` is listed twice; name two different inputs"
        if self.projection == "none" and self.dim != job.align.dim:
            yield (
                "dim",
                f"{self.dim} is not align.dim {job.align.dim}, as `projection: none` requires; use {job.align.dim}",
            )
