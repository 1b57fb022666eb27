"""Alignment losses: auxiliary losses that pull the inputs of a row together."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import JobSection, Problems
from rayfuse.spec.family import CustomConfig, Family, PartOf

if TYPE_CHECKING:
    from rayfuse.spec.job import Job


class BaseAlignLossConfig(JobSection):
    """Options of every alignment loss."""

    type: str
    """Kind of alignment loss, or the import path of a custom one."""
    weight: float = Field(0.1, gt=0)
    """Factor of this loss in the sum with the losses of the tasks."""

    def validate_in_job(self, job: "Job") -> Problems:
        if len(job.inputs) < 2:
            yield (
                "type",
                f"{self.type} compares inputs, and the job has 1; add an input, or leave `loss` out",
            )


class ContrastiveLossConfig(BaseAlignLossConfig):
    """InfoNCE in both directions: find a row's other input among those of all rows of the step, over all workers.

    Van den Oord et al., 2018; Radford et al., 2021.
    """

    type: Literal["contrastive"]
    temperature: float = Field(0.07, gt=0)
    """Divides the similarities; the lower it is, the more the most similar negatives count."""


class SiameseLossConfig(BaseAlignLossConfig):
    """Cosine embedding loss (Hadsell et al., 2006).

    Pulls the inputs of a row to similarity 1, and pushes those of different rows below a margin.
    """

    type: Literal["siamese"]
    margin: float = Field(0.2, ge=-1, lt=1)
    """Cosine similarity below which inputs of different rows have no loss."""


class MarginLossConfig(BaseAlignLossConfig):
    """Hinge loss on similarity (Weston and Watkins, 1999; Frome et al., 2013): a row's own pair wins by a margin."""

    type: Literal["margin"]
    margin: float = Field(0.2, gt=0, le=2)
    """Cosine similarity by which a row's own pair must exceed pairs of different rows."""


class ConsistencyLossConfig(BaseAlignLossConfig):
    """Divergence of predictions from a subset of a row's inputs from the prediction from all of them.

    The prediction from all inputs gets no gradient. The subsets are those of train.subset_loss; without it, a random one
    for each row and epoch.
    """

    type: Literal["consistency"]

    def validate_in_job(self, job: "Job") -> Problems:
        yield from super().validate_in_job(job)
        if not any(options.optional for options in job.inputs.values()):
            yield "type", "consistency needs an optional input to leave out; mark one `optional: true`"
        if job.train.mixup:
            yield "type", "consistency cannot be combined with train.mixup; leave one of the two out"


class CustomAlignLossConfig(CustomConfig, BaseAlignLossConfig):
    """A subclass of rayfuse.model.alignment_losses.AlignmentLoss, by import path."""

    base_class: ClassVar[str] = "rayfuse.model.alignment_losses.base:AlignmentLoss"

    def validate_in_job(self, job: "Job") -> Problems:
        return ()


AlignLossConfig = Annotated[BaseAlignLossConfig, PartOf(lambda: ALIGNMENT_LOSSES)]
"""Any alignment loss."""

ALIGNMENT_LOSSES: Family[BaseAlignLossConfig] = Family(
    "alignment loss",
    {
        ContrastiveLossConfig: "rayfuse.model.alignment_losses.contrastive:Contrastive",
        SiameseLossConfig: "rayfuse.model.alignment_losses.siamese:Siamese",
        MarginLossConfig: "rayfuse.model.alignment_losses.margin:Margin",
        ConsistencyLossConfig: "rayfuse.model.alignment_losses.consistency:Consistency",
    },
    custom=CustomAlignLossConfig,
)
"""The built-in alignment losses."""


def _as_list(value: Any) -> Any:
    if value is None:
        return []
    return [value] if isinstance(value, dict) else value


def _reject_duplicates(losses: list[BaseAlignLossConfig]) -> list[BaseAlignLossConfig]:
    types = [loss.type for loss in losses]
    for type_ in types:
        if types.count(type_) > 1:
            raise PydanticCustomError("losses", "`{type}` is listed twice; remove one", {"type": type_})
    return losses


AlignLossConfigs = Annotated[
    list[AlignLossConfig],
    BeforeValidator(_as_list, json_schema_input_type=AlignLossConfig | list[AlignLossConfig] | None),
    AfterValidator(_reject_duplicates),
]
"""Alignment losses: null, one block, or a list."""
