"""What Ray Serve tells a running endpoint, and may tell it anew without loading its model again."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rayfuse.spec.service import Service


@dataclass(frozen=True)
class Settings:
    """Limits, batching, keys and name of an endpoint. Ray shows them to all who ask: keys are here as hashes alone."""

    max_size: int = 32
    wait: float = 0.005
    queue: int = 200
    timeout: float = 30.0
    body: int = 20_000_000
    keys: tuple[str, ...] = ()
    """SHA-256 of each API key. None: only this machine is answered."""
    model: str | None = None
    """Name of the model, for replies and `rayfuse serve status`; None: as its folder says."""
    version: int | None = None

    @classmethod
    def of(cls, service: Service, model: str | None = None, version: int | None = None) -> "Settings":
        return cls(
            max_size=service.batching.max_size,
            wait=service.batching.wait,
            queue=service.limits.queue,
            timeout=service.limits.timeout,
            body=service.limits.body,
            keys=tuple(digest(key.get_secret_value()) for key in service.auth.keys),
            model=model,
            version=version,
        )

    @classmethod
    def load(cls, config: Mapping[str, Any]) -> "Settings":
        """The settings that `dump` wrote."""
        return cls(**{**config, "keys": tuple(config["keys"])})

    def dump(self) -> dict[str, Any]:
        return {**asdict(self), "keys": list(self.keys)}

    @property
    def most(self) -> int:
        """Requests that may be here at a time: those in the model and those that wait."""
        return self.max_size + self.queue

    def admits(self, key: str) -> bool:
        """Whether `key` is one of the keys; takes as long for a key that is nearly right."""
        given = digest(key)
        matches = [hmac.compare_digest(given, known) for known in self.keys]
        return any(matches)


def digest(key: str) -> str:
    """What is kept of an API key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
