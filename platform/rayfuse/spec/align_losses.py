"""Losses beside the tasks' own that bring what a row's inputs say closer together."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import Part


class _AlignLoss(Part):
    weight: float = Field(0.1, gt=0)
    """Factor of this loss beside the tasks' own."""

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        if len(job.inputs) < 2:
            yield "type", "one input has nothing to agree with; it takes two inputs or more"


class ContrastiveLoss(_AlignLoss):
    """InfoNCE in both directions (van den Oord et al., 2018; Radford et al., 2021): find a row's other input
    among those of all rows of the step, over all workers.
    """

    type: Literal["contrastive"]
    temperature: float = Field(0.07, gt=0)
    """Similarities are divided by it; the smaller, the more the nearest wrong rows count."""


class SiameseLoss(_AlignLoss):
    """Cosine embedding loss (Hadsell et al., 2006): pairs of a row to similarity 1, those of different rows below a
    margin.
    """

    type: Literal["siamese"]
    margin: float = Field(0.2, ge=-1, lt=1)
    """Cosine similarity up to which inputs of different rows are left alone."""


class MarginLoss(_AlignLoss):
    """Hinge on similarity (Weston and Watkins, 1999; Frome et al., 2013): a row's own pair wins by a margin."""

    type: Literal["margin"]
    margin: float = Field(0.2, gt=0, le=2)
    """By how much cosine similarity a row's own pair must exceed those with other rows."""


class ConsistencyLoss(_AlignLoss):
    """Answers from a subset of a row's inputs agree with the answer from all of them, which is left as it is.

    The subsets are those of train.subset_loss; without it, one at random for each row and epoch.
    """

    type: Literal["consistency"]

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        yield from super().problems(job)
        if not any(options.optional for options in job.inputs.values()):
            yield (
                "type",
                "no row has a proper subset of inputs to answer from; mark an input `optional: true`",
            )
        if job.train.mixup:
            yield "type", "rows mixed by train.mixup have no subset to agree with; use one of the two"


AlignLoss = Annotated[
    ContrastiveLoss | SiameseLoss | MarginLoss | ConsistencyLoss, Field(discriminator="type")
]


def _as_list(value: Any) -> Any:
    """One loss may be written without the list around it, and null is none."""
    if value is None:
        return []
    return [value] if isinstance(value, dict) else value


def _distinct(losses: list[Any]) -> list[Any]:
    kinds = [loss.type for loss in losses]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise PydanticCustomError("losses", "`{kind}` is listed twice", {"kind": kind})
    return losses


AlignLosses = Annotated[
    list[AlignLoss],
    BeforeValidator(_as_list, json_schema_input_type=AlignLoss | list[AlignLoss] | None),
    AfterValidator(_distinct),
]
"""None, one or several."""
