"""DeepSpeed options: ZeRO stage and offloading."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import SpecModel, UrlMember, mapping_or_url

OffloadDevice = Literal["cpu"]
"""Host memory. For offloading to disks, which needs a compiled operator, use a DeepSpeed JSON file."""


class OffloadConfig(SpecModel):
    """State in host memory instead of GPU memory (Ren et al., 2021); steps become slower."""

    optimizer: OffloadDevice | None = None
    """Optimizer state, whose steps then run on the CPU: stages 1, 2 and 3."""
    parameters: OffloadDevice | None = None
    """Parameters, gathered layer by layer: stage 3."""


class DeepSpeedConfig(SpecModel):
    """ZeRO stage and offloading."""

    stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: optimizer state (1), gradients (2) and parameters (3) are sharded (Rajbhandari et al., 2020).

    With one worker, stages 1 and 2 compute the same as stage 0.
    """
    offload: OffloadConfig = Field(default_factory=OffloadConfig)
    """State in host memory instead of GPU memory."""

    @model_validator(mode="after")
    def _check_offload_stage(self) -> "DeepSpeedConfig":
        for what, given, least, remedy in (
            ("optimizer", self.offload.optimizer, 1, "stage 1, 2 or 3"),
            ("parameters", self.offload.parameters, 3, "stage 3"),
        ):
            if given and self.stage < least:
                raise PydanticCustomError(
                    "offload",
                    "cpu is not supported by ZeRO stage {stage}; use {remedy}",
                    {"stage": self.stage, "remedy": remedy, "path": f"offload.{what}"},
                )
        return self


DeepSpeedConfigOrUrl = Annotated[
    Annotated[DeepSpeedConfig, Tag("mapping")] | UrlMember, Discriminator(mapping_or_url)
]
