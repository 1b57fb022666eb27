"""Requests of the OpenAI routes: their fields, and which of them this endpoint supports.

The forms are those of https://platform.openai.com/docs/api-reference (chat, completions, responses). A field that
changes the reply and is not supported is an error; one that does not, such as `user`, is accepted.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic import JsonValue as Json

from rayfuse.decoding.request import MAX_STOP_STRINGS, MAX_TOP_LOGPROBS
from rayfuse.formatting import truncated_repr
from rayfuse.serving.openai_errors import OpenAIError
from rayfuse.spec.error_messages import suggest_nearest

MAX_CHOICES = 16
"""Largest `n`."""

_NEUTRAL = frozenset(
    {
        "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "reasoning",
        "reasoning_effort", "safety_identifier", "service_tier", "store", "truncation", "user", "verbosity",
    }
)  # fmt: skip
"""Fields of OpenAI that do not change a reply of this endpoint."""

_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "background": (None, False),
    "best_of": (None, 1),
    "conversation": (None,),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "include": (None, []),
    "logit_bias": (None, {}),
    "max_tool_calls": (None,),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "previous_response_id": (None,),
    "prompt": (None, ""),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "web_search_options": (None,),
}
"""Fields of OpenAI that this endpoint does not support, with the values that mean the same as leaving them out."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stop = Annotated[
    list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list), Field(max_length=MAX_STOP_STRINGS)
]


class JsonSchemaFormat(BaseModel):
    """The JSON Schema of a reply."""

    name: str = Field(default="reply", max_length=64)
    description: str | None = None
    schema_: dict[str, Json] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """Form of a reply: free text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    def as_json_schema(self, param: str) -> Mapping[str, Any] | None:
        """Return the JSON Schema that the reply follows; None for free text."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {"type": "object"}
        if self.json_schema is None:
            raise OpenAIError(
                400, "type json_schema needs the field json_schema", f"{param}.json_schema", "missing"
            )
        return self.json_schema.schema_


class StreamOptions(BaseModel):
    """Contents of a stream in addition to the reply."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ModelRequest(BaseModel):
    """A request to a model."""

    model_config = ConfigDict(extra="allow", strict=True)
    neutral: ClassVar[frozenset[str]] = _NEUTRAL

    model: str


class TextRequest(ModelRequest):
    """Fields that the routes of texts have in common."""

    stream: bool = False
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    """Not part of OpenAI's protocol; send it through `extra_body`."""
    seed: int | None = None
    inputs: dict[str, Any] = Field(default_factory=dict)
    """Values of the model's other inputs, as `/predict` takes them; send them through `extra_body`."""


class ChatRequest(TextRequest):
    """Body of POST /chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stop: Stop | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    stream_options: StreamOptions | None = None


class CompletionRequest(TextRequest):
    """Body of POST /completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(default=16, ge=1)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stop: Stop | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    stream_options: StreamOptions | None = None


class EmbeddingRequest(ModelRequest):
    """Body of POST /embeddings."""

    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)


class TextFormat(BaseModel):
    """Form of a reply on the route /responses, where the members of `json_schema` are members of the format itself."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"] = "text"

    def as_response_format(self) -> ResponseFormat:
        """Return the form as the other routes write it."""
        if self.type != "json_schema":
            return ResponseFormat(type=self.type)
        try:
            schema = JsonSchemaFormat.model_validate(self.model_extra or {})
        except ValidationError as error:
            raise from_validation(error, "text.format") from None
        return ResponseFormat(type=self.type, json_schema=schema)


class TextOptions(BaseModel):
    """Options of the text of a reply."""

    format: TextFormat = Field(default_factory=TextFormat)
    verbosity: str | None = None


class ResponsesRequest(TextRequest):
    """Body of POST /responses."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    text: TextOptions | None = None
    stream_options: StreamOptions | None = None


Body = TypeVar("Body", bound=ModelRequest)


def parse_request(kind: type[Body], content: Any) -> Body:
    """Validate a request's body. Raises OpenAIError for the first field that is wrong, unknown or not supported."""
    if not isinstance(content, dict):
        raise OpenAIError(
            400, f"the body is {truncated_repr(content)}; it must be a JSON object", None, "invalid_type"
        )
    try:
        request = kind.model_validate(content)
    except ValidationError as error:
        raise from_validation(error) from None
    for name, value in (request.model_extra or {}).items():
        _check_extra(kind, name, value)
    return request


def from_validation(error: ValidationError, prefix: str = "") -> OpenAIError:
    """Return the first of pydantic's errors in OpenAI's form; unions report their last form, which is the longest."""
    first = error.errors(include_url=False)[0]
    names = [
        str(part)
        for part in first["loc"]
        if not (isinstance(part, str) and any(mark in part for mark in "[(,"))
    ]
    param = ".".join(filter(None, [prefix, *names])) or None
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    value = "" if first["type"] == "missing" else f"; got {truncated_repr(first['input'])}"
    return OpenAIError(400, f"{param}: {first['msg']}{value}", param, code)


def _check_extra(kind: type[ModelRequest], name: str, value: Any) -> None:
    if name in kind.neutral:
        return
    if name in _UNSUPPORTED:
        if value in _UNSUPPORTED[name]:
            return
        raise OpenAIError(
            400, f"{name} is not supported by this endpoint; leave it out", name, "unsupported_parameter"
        )
    known = [*kind.model_fields, *kind.neutral]
    raise OpenAIError(
        400, f"unknown parameter {name!r}; {suggest_nearest(name, known)}", name, "unknown_parameter"
    )
