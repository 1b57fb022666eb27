"""Retrieval: find one input by the other."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rayfuse.spec.base import Problems, is_missing
from rayfuse.spec.cells import CellType
from rayfuse.spec.tasks.base import Mode, Target
from rayfuse.spec.tasks.numbers import hash_to_floats
from rayfuse.spec.tasks.pairs import PairTaskConfig

if TYPE_CHECKING:
    from rayfuse.spec.inputs import BaseInput
    from rayfuse.spec.job import Job

RECALL_AT_K = (1, 5, 10)
"""The values of k of the metric R@k."""

_DIRECTION_METRICS: dict[str, Mode] = {**{f"r{k}": "max" for k in RECALL_AT_K}, "median_rank": "min"}
RETRIEVAL_METRICS: dict[str, Mode] = {
    "loss": "min",
    **_DIRECTION_METRICS,
    **{f"{way}_{name}": mode for way in ("forward", "backward") for name, mode in _DIRECTION_METRICS.items()},
}


class RetrievalTaskConfig(PairTaskConfig):
    """Retrieval of one input by the other among all rows: vectors of both in one space (Radford et al., 2021)."""

    type: Literal["retrieval"]
    column: str | None = Field(None, min_length=1)
    """Column whose equal values mark rows that match each other, such as several captions of one image. By default, and
    for null, a row matches only itself."""
    loss: Literal["contrastive", "max_violation", "cosine"] = "contrastive"
    """`contrastive`: InfoNCE in both directions, with a learned temperature (Radford et al., 2021). `max_violation`: a
    margin against the hardest negative of the batch (VSE++; Faghri et al., 2018). `cosine`: 1 - cosine of the true
    pair, which maps one input into the space of a frozen encoder of the other (as DeViSE; Frome et al., 2013)."""
    hard_negative_beta: float = Field(0.0, ge=0, le=20)
    """With `contrastive`, weight of hard negatives: exp(hard_negative_beta × cosine) (Robinson et al., 2021); 0 for equal
    weights."""
    margin: float = Field(0.2, gt=0, le=2)
    """With `max_violation`, the cosine similarity by which the true pair must exceed others."""
    csls_bank: int = Field(0, ge=0, le=65536)
    """Training rows stored in the model to correct for hubs, which are similar to everything (CSLS; Conneau et al.,
    2018); 0 for no correction."""

    def validate_in_job(self, job: "Job") -> Problems:
        yield from super().validate_in_job(job)
        if self.loss == "cosine" and not any(self._is_frozen(job, name) for name in self.inputs):
            yield (
                "loss",
                "cosine collapses all rows to one vector if both inputs are trained; freeze one with `projection: none` "
                "here, and `encoder.train: frozen` and `align: {type: identity}` there",
            )

    def _is_frozen(self, job: "Job", name: str) -> bool:
        source = job.inputs.get(name)
        return (
            source is not None
            and self.projection == "none"
            and not job.align_of(name).trainable
            and source.encoder.frozen
        )

    @property
    def columns(self) -> dict[str, CellType]:
        return {self.column: "int"} if self.column else {}

    def metric_modes(self) -> dict[str, Mode]:
        return RETRIEVAL_METRICS

    def read(self, values: Mapping[str, Any], inputs: "Mapping[str, BaseInput]") -> Target:
        """Return a hash of the value of the column, as two numbers; NaN for a row that matches only itself."""
        value = values.get(self.column) if self.column else None
        return [float("nan")] * 2 if is_missing(value) else hash_to_floats(value)
