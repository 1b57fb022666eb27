"""Actor by which the driver of a sweep asks its running trials to save a checkpoint and to end.

Imports Ray, so `rayfuse.training.ray_session.connect` must run before.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_REPLY_SECONDS = 1.0


class StopFlag:
    """A flag that all trials of a sweep read. Copies in other processes refer to the same actor."""

    def __init__(self) -> None:
        """Start the actor on the node of this process, so that it does not end with another node."""
        here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        remote: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_Flag)
        self._actor: ActorHandle[_Flag] = remote.remote()

    def set(self) -> None:
        """Set the flag, without waiting."""
        call: Any = self._actor.set.remote
        call()

    def is_set(self) -> bool:
        """Return whether the flag is set; False if its actor does not respond."""
        call: Any = self._actor.is_set.remote
        with suppress(RayActorError, GetTimeoutError):
            return bool(ray.get(call(), timeout=_REPLY_SECONDS))
        return False

    def close(self) -> None:
        """End the actor."""
        ray.kill(self._actor)


class _Flag:
    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set
