"""The interface between the OpenAI routes and a text generator."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rayfuse.decoding.request import SamplingParams
from rayfuse.serving.streaming import Reply

Role = Literal["system", "developer", "user", "assistant"]


@dataclass(frozen=True)
class TextPart:
    """A text within a message."""

    text: str


@dataclass(frozen=True)
class FilePart:
    """An image or a sound within a message."""

    kind: Literal["image", "audio"]
    content: bytes
    """The encoded file, such as PNG or WAV."""


@dataclass(frozen=True)
class ChatMessage:
    """A message of a dialogue."""

    role: Role
    parts: tuple[TextPart | FilePart, ...]
    name: str | None = None

    @property
    def text(self) -> str:
        """Return the texts of the message, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True)
class GenerationRequest:
    """One reply that a route asks for: to `messages` or behind `prompt`, exactly one of which is given."""

    sampling: SamplingParams
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    """A text or token ids to continue, without a chat template."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Values of the model's other inputs, as `/predict` takes them."""
    json_schema: Mapping[str, Any] | None = None
    """JSON Schema that the reply follows."""
    language: str | None = None
    """Code of the language of a transcript."""
    time_stamps: bool = False
    """True for a transcript with time stamps."""


class TextGenerator(Protocol):
    """A model that the OpenAI routes serve under a name."""

    @property
    def created(self) -> int:
        """Unix time at which the model was created."""
        ...

    @property
    def defaults(self) -> SamplingParams:
        """Temperature and top-p of requests that give none."""
        ...

    async def open(self, request: GenerationRequest) -> Reply:
        """Start a reply.

        Raises InvalidInputError, with the parameter as its input name, for a request that cannot be answered, and
        DecoderBusyError if too many wait.
        """
        ...

    def token_text(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for, for log-probabilities."""
        ...
