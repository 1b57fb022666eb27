"""What tasks over pairs of inputs share."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from rayfuse.spec.base import Key
from rayfuse.spec.tasks.base import BaseTask, input_problems


class PairTask(BaseTask):
    """A task over two inputs, each of which becomes one vector by itself."""

    inputs: tuple[Key, Key]
    """The two inputs."""
    dim: int = Field(128, ge=2, le=8192)
    """Width of the vectors."""
    projection: Literal["none", "linear", "mlp"] = "mlp"
    """What makes an aligned input's mean token a vector: nothing, one linear map, or two with a GELU between them."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Within the MLP."""

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        yield from input_problems(job, "inputs", self.inputs)
        if self.inputs[0] == self.inputs[1]:
            yield "inputs", f"`{self.inputs[0]}` is named twice; a pair is of two inputs"
        if self.projection == "none" and self.dim != job.align.dim:
            yield "dim", f"{self.dim}, but with `projection: none` it must be align.dim, {job.align.dim}"
