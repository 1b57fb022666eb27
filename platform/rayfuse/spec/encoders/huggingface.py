"""Options of pretrained encoders."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import ModelRef, Pattern, Problems
from rayfuse.spec.encoders.adapters import IA3AdapterConfig, LoraAdapterConfig, OFTAdapterConfig
from rayfuse.spec.encoders.base import LayeredEncoderConfig, Pool

if TYPE_CHECKING:
    from rayfuse.spec.job import Job

TrainScope = Annotated[
    str,
    Pattern(
        r"^(frozen|last:[1-9][0-9]{0,2}|lora|ia3|oft|full)$",
        "not one of: frozen, lora, ia3, oft, full, last:N with N from 1",
    ),
]


def _validate_hidden_states(value: tuple[int, ...]) -> tuple[int, ...]:
    if value[-1] != -1 or len(set(value)) < len(value):
        raise PydanticCustomError(
            "hidden_states", "not a list of hidden states; list each once, and end with -1, the last"
        )
    return value


class HuggingFaceEncoderConfig(LayeredEncoderConfig):
    """A pretrained encoder from a Hugging Face folder or hub."""

    reads_waveforms: ClassVar[bool] = True

    type: Literal["huggingface"]
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
    pool: Pool = "mean"
    """Pooling of the encoder's outputs to one vector; `none` passes every position to the fusion."""

    hidden_states: Annotated[
        tuple[int, ...], Field(min_length=1, max_length=64), AfterValidator(_validate_hidden_states)
    ] = (-1,)
    """Hidden states to concatenate, each with layer norm if there are several: 0 is the input of the first layer, 1 its
    output; -1 is the last and ends the list (as in Devlin et al., 2019, §5.3)."""

    @property
    def frozen(self) -> bool:
        return self.train == "frozen" and self.pool != "attention"  # whose weights are learned

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

    def validate_in_job(self, job: "Job") -> Problems:
        if self.train == "frozen" and self.layer_decay != 1:
            yield (
                "layer_decay",
                f"{self.layer_decay:g} has no effect on a frozen encoder; leave it out, or set `train`",
            )
        if self.adapter is not None:
            yield from (
                (f"{self.train}.{where}", reason) for where, reason in self.adapter.validate_in_job(job)
            )
