"""Options of pretrained encoders."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import Problems
from rayfuse.spec.encoders.base import LayeredEncoderConfig, Pool
from rayfuse.spec.encoders.pretrained import PretrainedModelConfig

if TYPE_CHECKING:
    from rayfuse.spec.job import Job


def _validate_hidden_states(value: tuple[int, ...]) -> tuple[int, ...]:
    if value[-1] != -1 or len(set(value)) < len(value):
        raise PydanticCustomError(
            "hidden_states", "not a list of hidden states; list each once, and end with -1, the last"
        )
    return value


class HuggingFaceEncoderConfig(PretrainedModelConfig, LayeredEncoderConfig):
    """A pretrained encoder from a Hugging Face folder or hub."""

    reads_waveforms: ClassVar[bool] = True

    type: Literal["huggingface"]
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

    def validate_in_job(self, job: "Job") -> Problems:
        if self.train == "frozen" and self.layer_decay != 1:
            yield (
                "layer_decay",
                f"{self.layer_decay:g} has no effect on a frozen encoder; leave it out, or set `train`",
            )
        yield from self.validate_adapter(job)
