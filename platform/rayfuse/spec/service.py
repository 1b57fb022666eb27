"""`kind: service`: serve a registered model over HTTP."""

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

from rayfuse.spec.base import Block, Bytes, Name, NotBuiltYet, Seconds, Url

_MODELS_URI = re.compile(r"^models:/[^/@]+(@[A-Za-z0-9_.-]+|/\d+)$")


class Replicas(Block):
    min: int = Field(1, ge=1)
    max: int = Field(1, ge=1)
    target_ongoing: float = Field(8, gt=0)
    """Requests that one replica should have at a time; more of them start another replica."""
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> "Replicas":
        if self.max < self.min:
            raise PydanticCustomError(
                "replicas", "{max} is less than min {min}", {"max": self.max, "min": self.min, "path": "max"}
            )
        return self


class Batching(Block):
    max_size: int = Field(32, ge=1)
    """Most rows in one call of the model."""
    wait: Seconds = 0.005
    """How long the first row of a batch waits for others."""


def _split_keys(value: Any) -> Any:
    return [key.strip() for key in value.split(",") if key.strip()] if isinstance(value, str) else value


def _usable_keys(keys: list[SecretStr]) -> list[SecretStr]:
    """A spec that was saved holds its keys as asterisks, and those must never become keys."""
    if any(not key.get_secret_value().strip(" *") for key in keys):
        raise PydanticCustomError("keys", "a key is empty or only asterisks; give the keys again")
    return keys


_TEXT_OR_LIST = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


class Auth(Block):
    keys: Annotated[
        list[SecretStr],
        BeforeValidator(_split_keys),
        AfterValidator(_usable_keys),
        WithJsonSchema(_TEXT_OR_LIST),
    ] = Field([])
    """API keys, comma-separated. None: the endpoint listens on loopback only."""


class Limits(Block):
    body: Bytes = 20_000_000
    """Largest request body; a larger one is answered with 413."""
    queue: int = Field(200, ge=1)
    """Requests that may wait at one replica; one more is answered with 503."""
    timeout: Seconds = 30.0
    """Longest time for an answer, else 504."""


class Service(Block):
    """Serve a registered model over HTTP."""

    kind: Literal["service"]
    name: Name
    route: str = ""
    """Path below which the endpoint answers; /NAME where absent."""
    model: Url
    """`models:/NAME@ALIAS`, `models:/NAME/VERSION`, or the URL of a model folder."""
    port: int = Field(8000, ge=1, le=65535)
    replicas: Replicas = Replicas()
    batching: Batching = Batching()
    traffic: NotBuiltYet = None
    """Canary or shadow traffic."""
    auth: Auth = Auth()
    limits: Limits = Limits()
    tracking: Url | None = None
    """MLflow server or database; MLFLOW_TRACKING_URI, else `runs/mlflow.db` below the working folder."""

    @field_validator("route")
    @classmethod
    def _absolute(cls, value: str) -> str:
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
    def prefix(self) -> str:
        return self.route or f"/{self.name}"
