"""Flag by which the driver of a sweep asks its running trials to save a checkpoint and to end.

It is an entry of the key-value store of Ray's GCS, as an actor takes seconds to start.
"""

import uuid
from contextlib import suppress
from typing import Any

from ray.exceptions import RaySystemError, RpcError

from rayfuse.ray_patches import require

_NAMESPACE = "rayfuse-stop"
_NO_RESPONSE = (RaySystemError, RpcError)


class StopFlag:
    """A flag that all trials of a sweep read. Copies in other processes of the cluster refer to the same flag."""

    def __init__(self) -> None:
        self._key = uuid.uuid4().hex

    def set(self) -> None:
        """Set the flag, if the GCS responds."""
        with suppress(*_NO_RESPONSE):
            _store()._internal_kv_put(self._key, "1", namespace=_NAMESPACE)

    def is_set(self) -> bool:
        """Return whether the flag is set; False if the GCS does not respond."""
        with suppress(*_NO_RESPONSE):
            return bool(_store()._internal_kv_exists(self._key, namespace=_NAMESPACE))
        return False

    def remove(self) -> None:
        """Remove the entry, if the GCS responds."""
        with suppress(*_NO_RESPONSE):
            _store()._internal_kv_del(self._key, namespace=_NAMESPACE)


def _store() -> Any:
    return require("ray.experimental.internal_kv")
