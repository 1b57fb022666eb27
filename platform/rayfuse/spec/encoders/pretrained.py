"""Options of pretrained models: where they are, and what of them is trained."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from rayfuse.spec.base import JobSection, ModelRef, Pattern, Problems
from rayfuse.spec.encoders.adapters import IA3AdapterConfig, LoraAdapterConfig, OFTAdapterConfig

if TYPE_CHECKING:
    from rayfuse.spec.job import Job

TrainScope = Annotated[
    str,
    Pattern(
        r"^(frozen|last:[1-9][0-9]{0,2}|lora|ia3|oft|full)$",
        "not one of: frozen, lora, ia3, oft, full, last:N with N from 1",
    ),
]


class PretrainedModelConfig(JobSection):
    """Options of a pretrained model from a Hugging Face folder or hub."""

    model: ModelRef
    """A folder, a URL of one, or an id on the hub."""
    train: TrainScope = "frozen"
    """Trained parameters: none (`frozen`), the last N layers and what follows them (`last:N`), adapters (`lora`, `ia3`,
    `oft`), or everything (`full`)."""
    lora: LoraAdapterConfig = Field(default_factory=LoraAdapterConfig)
    """Adapters with `train: lora`."""
    ia3: IA3AdapterConfig = Field(default_factory=IA3AdapterConfig)
    """Adapters with `train: ia3`."""
    oft: OFTAdapterConfig = Field(default_factory=OFTAdapterConfig)
    """Adapters with `train: oft`."""

    @property
    def frozen(self) -> bool:
        """True if nothing of it is trained."""
        return self.train == "frozen"

    @property
    def adapter(self) -> LoraAdapterConfig | IA3AdapterConfig | OFTAdapterConfig | None:
        """The adapters that are trained, if any."""
        blocks: dict[str, LoraAdapterConfig | IA3AdapterConfig | OFTAdapterConfig] = {
            "lora": self.lora,
            "ia3": self.ia3,
            "oft": self.oft,
        }
        return blocks.get(self.train)

    @property
    def last_layers(self) -> int | None:
        """N of `train: last:N`."""
        return int(self.train.removeprefix("last:")) if self.train.startswith("last:") else None

    def validate_adapter(self, job: "Job") -> Problems:
        """Yield an error for each rule that the options of the trained adapters break."""
        if self.adapter is not None:
            yield from (
                (f"{self.train}.{where}", reason) for where, reason in self.adapter.validate_in_job(job)
            )

    def validate_zero_stage(self, stage: int) -> Problems:
        """Yield an error for each option that does not work under a ZeRO stage."""
        if isinstance(self.adapter, LoraAdapterConfig):
            yield from (
                (f"{self.train}.{where}", reason) for where, reason in self.adapter.validate_zero_stage(stage)
            )
