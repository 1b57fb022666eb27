"""Requests of the decoder, and their replies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from rayfuse.decoding.constraint import TokenConstraint
from rayfuse.errors import InvalidInputError
from rayfuse.modalities.transcripts import Segment

FinishReason = Literal["stop", "length", "cancelled"]
"""`stop`: an end token, a stop string or a finished constraint; `length`: `max_tokens` or the end of the slot."""

Span = Sequence[int] | torch.Tensor
"""Token ids, or input embeddings of shape (length, hidden)."""

MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16


class ContextLengthError(InvalidInputError):
    """A prompt, or a prompt and its reply, that do not fit into a slot."""


@dataclass(frozen=True)
class SamplingParams:
    """Choice of the tokens of a reply. Raises InvalidInputError, with the field's name, where one is out of range."""

    max_tokens: int | None = None
    """Largest number of tokens of the reply, its end token included; None: as many as the slot has room for."""
    temperature: float = 0.0
    """Divides the logits; 0 takes the most probable token."""
    top_p: float = 1.0
    """Sample among the most probable tokens that together reach this probability (Holtzman et al., 2020)."""
    top_k: int = 0
    """Sample among this many most probable tokens; 0: among all."""
    seed: int | None = None
    """Seed of this request's random numbers: the same seed gives the same reply, whoever shares the batch."""
    stop: tuple[str, ...] = ()
    """Texts that end the reply; they are not part of it."""
    top_logprobs: int | None = None
    """Log-probabilities of each token and of this many alternatives, before temperature and masks; None: none."""
    ignore_eos: bool = False
    """Continue past end tokens, for measurements."""

    def __post_init__(self) -> None:
        _require(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        valid_temperature = math.isfinite(self.temperature) and 0 <= self.temperature <= 100
        _require(valid_temperature, "temperature", self.temperature, "between 0 and 100")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(self.top_k >= 0, "top_k", self.top_k, "0 (all tokens) or more")
        few = len(self.stop) <= MAX_STOP_STRINGS
        _require(
            few and all(self.stop),
            "stop",
            list(self.stop),
            f"up to {MAX_STOP_STRINGS} texts that are not empty",
        )
        valid_top = self.top_logprobs is None or 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS
        _require(valid_top, "top_logprobs", self.top_logprobs, f"between 0 and {MAX_TOP_LOGPROBS}")


def _require(valid: bool, name: str, value: object, rule: str) -> None:
    if not valid:
        raise InvalidInputError(f"{value!r} is not allowed; it must be {rule}", name)


@dataclass(frozen=True)
class DecodeRequest:
    """A prompt and how to continue it."""

    prompt: Span | Sequence[Span] = ()
    """Token ids, input embeddings of shape (length, hidden), or a sequence of such spans.

    For an encoder–decoder model, the start of the decoder's sequence; empty: its start token.
    """
    params: SamplingParams = field(default_factory=SamplingParams)
    source: torch.Tensor | None = None
    """Input of an encoder–decoder model: token ids (length,), embeddings (length, hidden), or features as its
    feature extractor returns them for one sample (Whisper: mel bands × frames)."""
    encoder_states: torch.Tensor | None = None
    """States (length, hidden) for cross-attention: instead of `source`, or for a causal model with cross-attention;
    tokens of inputs (length, dim) for one whose layers attend to inputs (`rayfuse.decoding.input_memory`)."""
    adapter: str | None = None
    """Name of a PEFT adapter of the model; None: the model as it is set."""
    constraint: TokenConstraint | None = None
    """Restricts the reply, for example to a JSON schema; it is stateful and serves one request."""


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a generated token, and of the most probable ones at its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """Pairs of token id and log-probability, the most probable first."""


@dataclass(frozen=True)
class Piece:
    """A part of a reply: whole characters only, which later tokens cannot change any more."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    """None as long as more pieces follow."""
    prompt_tokens: int = 0
    """Positions of the prompt, embeddings included."""
    reused_tokens: int = 0
    """Positions of the prompt whose keys and values came from an earlier request."""
    segments: tuple[Segment, ...] = ()
    """Those of a transcript with time stamps."""


@dataclass(frozen=True)
class Completion:
    """A whole reply."""

    text: str
    token_ids: tuple[int, ...]
    """All generated tokens, with the end token and the tokens of a stop string."""
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_tokens: int = 0
    reused_tokens: int = 0
    segments: tuple[Segment, ...] = ()


def join_pieces(pieces: Sequence[Piece]) -> Completion:
    """Join the pieces of a finished reply."""
    last = pieces[-1]
    assert last.finish_reason is not None
    return Completion(
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        finish_reason=last.finish_reason,
        logprobs=tuple(logprob for piece in pieces for logprob in piece.logprobs),
        prompt_tokens=last.prompt_tokens,
        reused_tokens=last.reused_tokens,
        segments=tuple(segment for piece in pieces for segment in piece.segments),
    )
