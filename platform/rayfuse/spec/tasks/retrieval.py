"""Finding one input by the other."""

from collections.abc import Iterable, Mapping
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
    loss: Literal["contrastive", "max_violation", "cosine"] = "contrastive"
    """`contrastive`: InfoNCE in both directions, with a learned temperature (Radford et al., 2021). `max_violation`: a
    margin against the hardest negative of the batch (VSE++; Faghri et al., 2018). `cosine`: 1 - cosine of the true
    pair, which takes one input to where a frozen encoder puts the other (as DeViSE; Frome et al., 2013)."""
    hardness: float = Field(0.0, ge=0, le=20)
    """With `contrastive`, how much more a negative weighs that is more alike: exp(hardness × cosine) (Robinson et al., 2021)."""
    margin: float = Field(0.2, gt=0, le=2)
    """With `max_violation`, by how much the true pair must be more alike (in cosine)."""

    bank: int = Field(0, ge=0, le=65536)
    """Training rows that the model remembers to correct for hubs, which are near to everything (CSLS; Conneau et al.,
    2018); 0 for none."""

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        yield from super().problems(job)
        if self.loss == "cosine" and not any(self._stays(job, name) for name in self.inputs):
            yield (
                "loss",
                "cosine: where both inputs are trained, making all rows alike would do; keep one as its encoder makes "
                "it, with `projection: none` here, and `encoder.train: frozen` and `align: {type: identity}` there",
            )

    def _stays(self, job: Any, name: str) -> bool:
        """Whether training does not change the vectors of an input."""
        source = job.inputs.get(name)
        return (
            source is not None
            and self.projection == "none"
            and job.align_of(name).type == "identity"
            and getattr(source.encoder, "train", None) == "frozen"
        )

    @property
    def columns(self) -> dict[str, Cell]:
        return {self.column: "whole"} if self.column else {}

    def metrics(self) -> dict[str, Mode]:
        return RETRIEVAL_METRICS

    def read(self, values: Mapping[str, Any], inputs: Mapping[str, Any]) -> Target:
        """What a row belongs to: two numbers that stand for the value of its column, NaN for itself alone."""
        value = values.get(self.column) if self.column else None
        return [float("nan")] * 2 if is_absent(value) else group_numbers(value)
