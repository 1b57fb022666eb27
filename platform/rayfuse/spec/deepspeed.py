"""How state is divided among the workers, and what of it lies in host memory."""

from typing import Annotated, Literal

from pydantic import Discriminator, Tag, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import Block, UrlMember, mapping_or_url

Where = Literal["cpu"]
"""Host memory. Disks need an operator that DeepSpeed compiles: a DeepSpeed JSON file can ask for it."""


class Offload(Block):
    """What is kept in host memory, to make room on GPUs (Ren et al., 2021); steps become slower."""

    optimizer: Where | None = None
    """Optimizer state, whose steps then run on the host's CPUs: stages 1, 2 and 3."""
    parameters: Where | None = None
    """Parameters, fetched layer by layer: stage 3."""


class DeepSpeed(Block):
    stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: what is divided among the workers (Rajbhandari et al., 2020).

    One worker has nobody to share with: its stages 1 and 2 are the computation of stage 0.
    """
    offload: Offload = Offload()
    """Keep optimizer state or parameters in host memory."""

    @model_validator(mode="after")
    def _stage_that_offloads(self) -> "DeepSpeed":
        for what, given, least, remedy in (
            ("optimizer", self.offload.optimizer, 1, "stage 1, 2 or 3"),
            ("parameters", self.offload.parameters, 3, "stage 3"),
        ):
            if given and self.stage < least:
                raise PydanticCustomError(
                    "offload",
                    "ZeRO stage {stage} keeps this where it is used; use {remedy}",
                    {"stage": self.stage, "remedy": remedy, "path": f"offload.{what}"},
                )
        return self


DeepSpeedOrUrl = Annotated[Annotated[DeepSpeed, Tag("mapping")] | UrlMember, Discriminator(mapping_or_url)]
