"""Spec of a service: serve a registered model over HTTP."""

import re
from typing import Annotated, Any, Literal

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

_MODELS_URI = re.compile(r"^models:/[^/@]+(@[A-Za-z0-9_.-]+|/\d+)$")


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


def _split_keys(value: Any) -> Any:
    return [key.strip() for key in value.split(",") if key.strip()] if isinstance(value, str) else value


def _reject_masked_keys(keys: list[SecretStr]) -> list[SecretStr]:
    """Raise an error for keys of asterisks, which saved specs contain instead of the real ones."""
    if any(not key.get_secret_value().strip(" *") for key in keys):
        raise PydanticCustomError("keys", "a key is empty or only asterisks; set the keys again")
    return keys


_TEXT_OR_LIST = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


class Auth(SpecModel):
    """Authentication of requests."""

    keys: Annotated[
        list[SecretStr],
        BeforeValidator(_split_keys),
        AfterValidator(_reject_masked_keys),
        WithJsonSchema(_TEXT_OR_LIST),
    ] = Field([])
    """API keys, comma-separated or as a list. Without keys, the endpoint listens on loopback only."""


class Limits(SpecModel):
    """Limits of requests."""

    max_body_size: Bytes = 20_000_000
    """Largest request body; larger ones get status 413."""
    max_queued_requests: int = Field(200, ge=1)
    """Requests that may wait at one replica; further ones get status 503."""
    request_timeout: Seconds = 30.0
    """Longest time for a response; slower requests get status 504."""


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
    limits: Limits = Field(default_factory=Limits)
    """Limits of requests."""
    tracking_uri: Url | None = None
    """MLflow server or database; by default MLFLOW_TRACKING_URI, else `runs/mlflow.db` in the working folder."""

    @field_validator("route")
    @classmethod
    def _validate_route(cls, value: str) -> str:
        if value and not re.fullmatch(r"(/[A-Za-z0-9_.~-]+)+", value):
            raise PydanticCustomError("route", "not a route; write /NAME or /A/B, without a slash at the end")
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
