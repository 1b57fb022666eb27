"""Ways in which the language model of a generation task reads inputs that have an encoder."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rayfuse.spec.base import Problems, SpecModel
from rayfuse.spec.encoders.prompt import PromptEncoderConfig
from rayfuse.spec.error_messages import suggest_nearest

if TYPE_CHECKING:
    from rayfuse.spec.inputs import BaseInput


class SoftTokensInjection(SpecModel):
    """Soft tokens in the prompt, in the places of the inputs' names (LLaVA; Liu et al., 2023)."""

    type: Literal["soft_tokens"]

    def attended_inputs(self, inputs: "Mapping[str, BaseInput]") -> list[str]:
        """Return no input: the prompt names them."""
        return []

    def validate_for(self, inputs: "Mapping[str, BaseInput]") -> Problems:
        """Yield no error: the prompt is validated."""
        return iter(())


class CrossAttentionInjection(SpecModel):
    """Gated cross-attention layers between those of a causal language model (Flamingo; Alayrac et al., 2022).

    Their gates are 0 at first, so that the model begins as it is without inputs. All of them are trained.
    """

    type: Literal["cross_attention"]
    every: int = Field(4, ge=1)
    """A gated layer is put before every N-th layer of the language model."""
    heads: int = Field(8, ge=1, le=1024)
    """Attention heads of a gated layer."""
    head_dim: int = Field(64, ge=1, le=4096)
    """Width of each head."""
    inputs: tuple[str, ...] | None = None
    """Inputs that are read, by default all that have an encoder other than `prompt`; with `fused`, they may be none: `[]`."""
    fused: bool = False
    """Read the fused vector as well, as one more token."""

    def attended_inputs(self, inputs: "Mapping[str, BaseInput]") -> list[str]:
        """Return the inputs that the gated layers read, in the order of the job."""
        return [
            name
            for name, options in inputs.items()
            if not isinstance(options.encoder, PromptEncoderConfig)
            and (self.inputs is None or name in self.inputs)
        ]

    def num_sources(self, inputs: "Mapping[str, BaseInput]") -> int:
        """Return the number of inputs that the gated layers read, the fused vector included."""
        return len(self.attended_inputs(inputs)) + self.fused

    def validate_for(self, inputs: "Mapping[str, BaseInput]") -> Problems:
        """Yield an error for each rule that the options break in a job with these inputs."""
        if self.inputs == () and not self.fused:
            yield "inputs", "is empty, and nothing is read; name an input, or set fused: true"
        for name in self.inputs or ():
            if name not in inputs:
                yield "inputs", f"no input `{name}`; {suggest_nearest(name, list(inputs))}"
            elif isinstance(inputs[name].encoder, PromptEncoderConfig):
                yield (
                    "inputs",
                    f"`{name}` is a text of the prompt; write {{{name}}} there, and remove it here",
                )
        if len(set(self.inputs or ())) < len(self.inputs or ()):
            yield "inputs", f"{', '.join(self.inputs or ())}: an input is listed twice; list each once"
        if self.inputs is None and not self.num_sources(inputs):
            yield (
                "type",
                "cross_attention reads inputs with an encoder, and the job has none; use soft_tokens",
            )


def _from_name(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


_NAME = Literal["soft_tokens", "cross_attention"]
_CONFIG = Annotated[SoftTokensInjection | CrossAttentionInjection, Field(discriminator="type")]
Injection = Annotated[_CONFIG, BeforeValidator(_from_name, json_schema_input_type=_NAME | _CONFIG)]
"""A type alone, or with its options."""
