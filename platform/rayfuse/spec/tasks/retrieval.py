"""Finding one input by the other."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from rayfuse.spec.tasks.base import Cell, Mode, Target, is_absent
from rayfuse.spec.tasks.numbers import group_numbers
from rayfuse.spec.tasks.pairs import PairTask

DEPTHS = (1, 5, 10)
"""The k of R@k."""

_NAMES: dict[str, Mode] = {**{f"r{k}": "max" for k in DEPTHS}, "median_rank": "min"}
RETRIEVAL_METRICS: dict[str, Mode] = {
    "loss": "min",
    **_NAMES,
    **{f"{way}_{name}": mode for way in ("forward", "backward") for name, mode in _NAMES.items()},
}


class RetrievalTask(PairTask):
    """Finds one input by the other among all rows: vectors of both in one space (Radford et al., 2021)."""

    type: Literal["retrieval"]
    column: str | None = Field(None, min_length=1)
    """Column whose equal values mean rows that are right answers for each other, as several captions of one picture.
    Where absent or null, a row only belongs to itself."""
    loss: Literal["contrastive", "max_violation"] = "contrastive"
    """`contrastive`: InfoNCE in both directions, with a learned temperature (Radford et al., 2021). `max_violation`: a
    margin against the hardest negative of the batch (VSE++; Faghri et al., 2018)."""
    hardness: float = Field(0.0, ge=0, le=20)
    """With `contrastive`, how much more a negative weighs that is more alike: exp(hardness × cosine) (Robinson et al., 2021)."""
    margin: float = Field(0.2, gt=0, le=2)
    """With `max_violation`, by how much the true pair must be more alike (in cosine)."""

    bank: int = Field(0, ge=0, le=65536)
    """Training rows that the model remembers to correct for hubs, which are near to everything (CSLS; Conneau et al.,
    2018); 0 for none."""

    @property
    def columns(self) -> dict[str, Cell]:
        return {self.column: "whole"} if self.column else {}

    def metrics(self) -> dict[str, Mode]:
        return RETRIEVAL_METRICS

    def read(self, values: Mapping[str, Any], inputs: Mapping[str, Any]) -> Target:
        """What a row belongs to: two numbers that stand for the value of its column, NaN for itself alone."""
        value = values.get(self.column) if self.column else None
        return [float("nan")] * 2 if is_absent(value) else group_numbers(value)
