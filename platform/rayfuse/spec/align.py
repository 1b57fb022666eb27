"""How encoded inputs are brought to one width."""

from typing import Literal

from pydantic import Field

from rayfuse.spec.base import NotBuiltYet, Part


class LinearAlign(Part):
    """One linear map and a layer norm per input, to a common width."""

    type: Literal["linear"] = "linear"
    dim: int = Field(128, ge=8, le=8192)
    """The common width."""
    loss: NotBuiltYet = None
    """Auxiliary loss that pulls the inputs of a row together."""


Align = LinearAlign
