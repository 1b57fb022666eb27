"""How encoded inputs are brought to one width."""

from typing import Literal

from pydantic import Field

from rayfuse.spec.align_losses import AlignLosses
from rayfuse.spec.base import Part


class LinearAlign(Part):
    """One linear map and a layer norm per input, to a common width."""

    type: Literal["linear"] = "linear"
    dim: int = Field(128, ge=8, le=8192)
    """The common width."""
    loss: AlignLosses = Field(default_factory=list)
    """Losses beside the tasks' own that pull the inputs of a row together: one, or a list of several."""


Align = LinearAlign
