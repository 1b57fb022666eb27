"""Interface between a task head and the endpoint that decodes its texts request by request, in slots of a decoder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rayfuse.decoding.request import DecodeRequest
from rayfuse.modalities.dialogues import Dialogue
from rayfuse.modalities.transcripts import Segment
from rayfuse.model.tokens import FusedState
from rayfuse.spec.tasks.generation import DecodingConfig

if TYPE_CHECKING:
    from rayfuse.decoding.model_runner import ModelRunner


@dataclass(frozen=True)
class PromptInputs:
    """Inputs of one sample's prompt; absent ones are left out."""

    texts: Mapping[str, str]
    """Texts that are put in as they are, by input."""
    soft_tokens: Mapping[str, torch.Tensor]
    """Vectors of the language model's width, float (tokens, width), by input."""
    attended: torch.Tensor | None = None
    """Tokens of the inputs that layers of the model attend to, float (tokens, dim)."""
    files: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)
    """Those of each file, by input whose values are parts of messages."""


@dataclass(frozen=True)
class TimeStamps:
    """Time stamps of transcripts."""

    request: Callable[[DecodeRequest], DecodeRequest]
    """Returns the request for a transcript with them."""
    split: Callable[[Sequence[int], float, bool], tuple[list[Segment], float]]
    """Returns the segments of a window's transcript, see `TranscriptRenderer.split`."""


@dataclass(frozen=True)
class TextDecoding:
    """Decoding of the texts of a task."""

    runner: "ModelRunner"
    """The language model."""
    tokenizer: Any
    """Its tokenizer."""
    stop_ids: Sequence[int]
    """Tokens that end a text."""
    max_tokens: int
    """Largest number of tokens of a text, with its end token."""
    options: DecodingConfig
    """Choice of the tokens."""
    max_source_tokens: int | None
    """Largest number of positions of an encoder–decoder model's encoder; None if it has no limit."""
    attended_inputs: Sequence[str]
    """Names of the inputs that layers of the model attend to."""
    attends_fused: bool
    """True if these layers attend to the fused vector as well."""
    language: str | None
    """Code of the spoken language that a speech model transcribes; None for other models."""
    prompt_inputs: Sequence[str]
    """Names of the inputs in the prompt, in its order."""
    read_inputs: Callable[[FusedState], list[PromptInputs]]
    """Returns the inputs of each sample's prompt."""
    render: Callable[[PromptInputs, Dialogue | None], DecodeRequest]
    """Returns the request of a sample without its settings, from any thread; raises InvalidInputError for a dialogue that
    it cannot render."""
    time_stamps: TimeStamps | None
    """Time stamps of a speech model's transcripts; None for other models."""
    continuation: Callable[[Sequence[int]], DecodeRequest]
    """Returns the request that continues tokens as they are, without the task's prompt."""
