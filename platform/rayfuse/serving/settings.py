"""Settings of an endpoint that can change without reloading its model (Ray Serve's `user_config`)."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rayfuse.errors import SpecError
from rayfuse.spec.service import Service
from rayfuse.spec.variables import is_variable


@dataclass(frozen=True)
class Settings:
    """Limits, batching, API keys, allowed origins and model name of an endpoint. Ray exposes them, so keys are stored as hashes."""

    max_batch_size: int = 32
    """Maximum number of instances in a batch."""
    batch_wait_timeout: float = 0.005
    """Seconds that the first instance of a batch waits for others."""
    max_queued_requests: int = 200
    """Requests that may wait for a batch; others get a 503."""
    request_timeout: float = 30.0
    """Seconds until a request gets a 408 or 504."""
    max_body_size: int = 20_000_000
    """Bytes of a request's body, and of the files that it names by URL."""
    max_decode_memory: int = 1_000_000_000
    """Bytes that a replica's processes take to decode files."""
    max_decode_time: float = 10.0
    """Seconds of CPU time to decode the values of a request."""
    keys: tuple[str, ...] = ()
    """SHA-256 of each API key; with none the endpoint accepts requests from loopback only."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the endpoint; `*` for any."""
    model: str | None = None
    """Name of the model; None: the name in its folder."""
    version: int | None = None
    """Version of the model; None: not a registered version."""

    @classmethod
    def from_service(
        cls, service: Service, model: str | None = None, version: int | None = None
    ) -> "Settings":
        """Build the settings of a service that serves this model and version.

        Raises SpecError for a variable as an API key, as in a service that was built in Python for a cluster.
        """
        for key in service.auth.keys:
            if is_variable(key.get_secret_value()):
                raise SpecError(
                    f"{service.name}: auth.keys: variables are resolved in spec files only; pass the keys, as in "
                    'os.environ["RAYFUSE_API_KEYS"]'
                )
        return cls(
            max_batch_size=service.batching.max_batch_size,
            batch_wait_timeout=service.batching.batch_wait_timeout,
            max_queued_requests=service.limits.max_queued_requests,
            request_timeout=service.limits.request_timeout,
            max_body_size=service.limits.max_body_size,
            max_decode_memory=service.limits.max_decode_memory,
            max_decode_time=service.limits.max_decode_time,
            keys=tuple(hash_api_key(key.get_secret_value()) for key in service.auth.keys),
            cors_origins=tuple(service.cors.origins),
            model=model,
            version=version,
        )

    @classmethod
    def load(cls, config: Mapping[str, Any]) -> "Settings":
        """Load settings from the result of `dump`."""
        lists = {name: tuple(config.get(name, ())) for name in ("keys", "cors_origins")}
        return cls(**{**config, **lists})

    def dump(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {**asdict(self), "keys": list(self.keys), "cors_origins": list(self.cors_origins)}

    @property
    def max_in_flight(self) -> int:
        """Maximum number of concurrent requests: one batch and the queue."""
        return self.max_batch_size + self.max_queued_requests

    def is_valid_key(self, key: str) -> bool:
        """Return whether `key` is one of the API keys, in constant time."""
        given = hash_api_key(key)
        matches = [hmac.compare_digest(given, known) for known in self.keys]
        return any(matches)


def hash_api_key(key: str) -> str:
    """Return the SHA-256 of an API key, in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
