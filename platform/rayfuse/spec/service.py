"""Spec of a service: serve a registered model over HTTP."""

import re
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import Bytes, Name, Seconds, Spec, SpecModel, Unimplemented, Url
from rayfuse.spec.variables import is_variable

_MODELS_URI = re.compile(r"^models:/[^/@]+(@[A-Za-z0-9_.-]+|/\d+)$")

MIN_KEY_LENGTH: Final = 16
"""Smallest number of characters of an API key."""

MIN_DECODE_MEMORY: Final = 200_000_000
"""Smallest memory to decode files, in bytes."""

_API_KEY = re.compile(rf"[!-~]{{{MIN_KEY_LENGTH},}}")
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")


class Replicas(SpecModel):
    """Replicas of an endpoint, their autoscaling and their resources."""

    min: int = Field(1, ge=1)
    """Smallest number of replicas."""
    max: int = Field(1, ge=1)
    """Largest number of replicas."""
    target_ongoing_requests: float = Field(8, gt=0)
    """Concurrent requests per replica that autoscaling aims at; more of them start another replica."""
    num_cpus: float = Field(1, ge=0)
    """CPU cores reserved for each replica."""
    num_gpus: float = Field(0, ge=0)
    """GPUs reserved for each replica."""

    @model_validator(mode="after")
    def _check_min_max(self) -> "Replicas":
        if self.max < self.min:
            raise PydanticCustomError(
                "replicas",
                "{max} is less than min {min}; use {min} or more",
                {"max": self.max, "min": self.min, "path": "max"},
            )
        return self


class Batching(SpecModel):
    """Batching of requests."""

    max_batch_size: int = Field(32, ge=1)
    """Largest number of rows in one call of the model."""
    batch_wait_timeout: Seconds = 0.005
    """Time that the first row of a batch waits for others."""


def _split_list(value: Any) -> Any:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _check_keys(keys: list[SecretStr]) -> list[SecretStr]:
    """Raise an error for keys that are easy to guess, and for asterisks, which saved specs contain instead of the keys.

    A variable stands for keys in a spec that is built in Python for a cluster, which resolves it.
    """
    for key in (secret.get_secret_value() for secret in keys):
        if not key.strip(" *"):
            raise PydanticCustomError("keys", "a key is empty or only asterisks; set the keys again")
        if "${" in key and not is_variable(key):
            raise PydanticCustomError(
                "keys", "a key looks like a variable; write ${{NAME}} or ${{NAME:-default}}"
            )
        if not is_variable(key) and not _API_KEY.fullmatch(key):
            raise PydanticCustomError(
                "keys",
                "a key is not {length} or more visible ASCII characters; make one with `openssl rand -hex 24`",
                {"length": MIN_KEY_LENGTH},
            )
    return keys


_TEXT_OR_LIST = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


class Auth(SpecModel):
    """Authentication of requests."""

    keys: Annotated[
        list[SecretStr],
        BeforeValidator(_split_list),
        AfterValidator(_check_keys),
        WithJsonSchema(_TEXT_OR_LIST),
    ] = Field([])
    """API keys of at least 16 characters, comma-separated or as a list. Without keys, the endpoint listens on loopback
    only."""


def _check_origins(origins: list[str]) -> list[str]:
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise PydanticCustomError(
                "origin",
                "{origin} is not an origin; write a scheme and a host in lower case, as in https://app.example.com, "
                "with a port if the page has one and without a path, or * for any",
                {"origin": origin},
            )
    return origins


class Cors(SpecModel):
    """Cross-origin requests: web pages that call the endpoint from a browser."""

    origins: Annotated[
        list[str], BeforeValidator(_split_list), AfterValidator(_check_origins), WithJsonSchema(_TEXT_OR_LIST)
    ] = Field([])
    """Origins of the pages, comma-separated or as a list, such as https://app.example.com; `*` for any. None by
    default."""


class Limits(SpecModel):
    """Limits of requests."""

    max_body_size: Bytes = Field(20_000_000, gt=0)
    """Largest request body; larger ones get status 413."""
    max_queued_requests: int = Field(200, ge=1)
    """Requests that may wait at one replica; further ones get status 503."""
    request_timeout: Seconds = Field(30.0, gt=0)
    """Longest time for a response; slower requests get status 504."""
    max_decode_memory: Bytes = Field(1_000_000_000, ge=MIN_DECODE_MEMORY)
    """Memory that each replica takes to decode files, at least 200 MB; files that need more get status 422."""
    max_decode_time: Seconds = Field(10.0, gt=0)
    """CPU time to decode the values of a request; requests that need more get status 422."""


class GenerationLimits(SpecModel):
    """Decoding of generation tasks: replies that are written at once, their length and their memory."""

    max_num_seqs: int = Field(8, ge=1, le=1024)
    """Replies that a replica writes at once; further ones wait, up to limits.max_queued_requests."""
    max_model_len: int = Field(2048, ge=2)
    """Largest number of tokens of a prompt and its reply, soft tokens included; at most the positions of the model."""
    kv_cache_memory: Bytes | None = Field(None, gt=0)
    """Memory of each replica for the keys and values of all replies; fewer than max_num_seqs are written at once if they
    do not fit. By default, as much as max_num_seqs replies of max_model_len tokens take."""
    max_tokens: int | None = Field(None, ge=1)
    """Largest number of tokens of a reply that a request may ask for; by default as many as fit into max_model_len."""
    max_queued_tokens: int | None = Field(None, ge=1)
    """Tokens of the prompts and replies of all requests of a replica together; further requests get status 429, or 503
    from /predict. By default only max_queued_requests limits them."""


class Service(Spec):
    """Serve a registered model over HTTP."""

    kind: Literal["service"]
    """Kind of spec."""
    name: Name
    """Name of the service."""
    route: str = ""
    """Path of the endpoint; by default /NAME."""
    model: Url
    """`models:/NAME@ALIAS`, `models:/NAME/VERSION`, or the URL of a model folder."""
    port: int = Field(8000, ge=1, le=65535)
    """Port of the HTTP server."""
    replicas: Replicas = Field(default_factory=Replicas)
    """Number of replicas and their resources."""
    batching: Batching = Field(default_factory=Batching)
    """Batching of requests."""
    traffic: Unimplemented = None
    """Canary or shadow traffic."""
    auth: Auth = Field(default_factory=Auth)
    """Authentication of requests."""
    cors: Cors = Field(default_factory=Cors)
    """Cross-origin requests; off by default."""
    limits: Limits = Field(default_factory=Limits)
    """Limits of requests."""
    generation: GenerationLimits = Field(default_factory=GenerationLimits)
    """Decoding of generation tasks."""
    tracking_uri: Url | None = None
    """MLflow server or database; by default MLFLOW_TRACKING_URI, else `runs/mlflow.db` in the working folder."""

    @field_validator("route")
    @classmethod
    def _validate_route(cls, value: str) -> str:
        if value and not re.fullmatch(r"(/[A-Za-z0-9_.~-]+)+", value):
            raise PydanticCustomError("route", "not a route; write /NAME or /A/B, without a slash at the end")
        segments = value.split("/")[1:]
        if any(segment in (".", "..") for segment in segments):
            raise PydanticCustomError(
                "route", "not a route: clients resolve its parts . and ..; write /NAME or /A/B"
            )
        if segments[:1] == ["-"]:
            raise PydanticCustomError(
                "route", "not a route: paths below /- are those of Ray Serve; write /NAME or /A/B"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> "Service":
        if self.model.startswith("models:") and not _MODELS_URI.match(self.model):
            raise PydanticCustomError(
                "model",
                "{reason}",
                {"reason": "write models:/NAME@ALIAS or models:/NAME/VERSION", "path": "model"},
            )
        return self

    @property
    def route_prefix(self) -> str:
        """Path of the endpoint."""
        return self.route or f"/{self.name}"
