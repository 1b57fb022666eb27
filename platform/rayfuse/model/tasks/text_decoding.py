"""Interface between a task head and the endpoint that decodes its texts request by request, in slots of a decoder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rayfuse.decoding.model_runner import ModelRunner
from rayfuse.modalities.prompts import Dialogue
from rayfuse.model.slot_decoding import NewConstraint, PromptSpans
from rayfuse.model.tokens import FusedState
from rayfuse.spec.tasks.generation import DecodingConfig


@dataclass(frozen=True)
class PromptInputs:
    """Inputs of one sample's prompt; absent ones are left out."""

    texts: Mapping[str, str]
    """Texts that are put in as they are, by input."""
    soft_tokens: Mapping[str, torch.Tensor]
    """Vectors of the language model's width, float (tokens, width), by input."""


@dataclass(frozen=True)
class TextDecoding:
    """Decoding of the texts of a task."""

    runner: ModelRunner
    """The language model."""
    tokenizer: Any
    """Its tokenizer."""
    stop_ids: Sequence[int]
    """Tokens that end a text."""
    max_tokens: int
    """Largest number of tokens of a text, with its end token."""
    options: DecodingConfig
    """Choice of the tokens."""
    constraint: NewConstraint
    """Returns what restricts a text, such as a JSON schema."""
    prompt_inputs: Sequence[str]
    """Names of the inputs in the prompt, in its order."""
    read_inputs: Callable[[FusedState], list[PromptInputs]]
    """Returns the inputs of each sample's prompt."""
    render: Callable[[PromptInputs, Dialogue | None], PromptSpans]
    """Returns the prompt of a sample, from any thread; raises InvalidInputError for a dialogue that it cannot render."""
