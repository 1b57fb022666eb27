"""The actor through which workers report to the driver. It runs outside the workers, so it survives them.

Records survive the actor, too, which Ray's memory monitor may kill: a sender repeats what the driver has not confirmed,
and the driver receives each record once, by its number.

A record is {"time": Unix seconds, "step": optimizer steps done, "metrics": {name: number}}, and may also have

    placement_group   hexadecimal id of the workers' placement group: the first record of a worker group
    first_step        epochs done when the first step is about to run
    text              a line for the progress output
    epoch             the epoch of a validation, from 1
    stopped           1 when the checkpoint of a run that the driver stops is complete
    replayed          1 for a validation that may have been reported before a restart
"""

import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ray.actor import ActorHandle

Record = dict[str, Any]

_DELIVERY_SECONDS = 60.0
"""For this long, a message is sent again to an actor that restarts."""


class Unconfirmed(NamedTuple):
    """Records of a sender that the driver has not confirmed."""

    first: int
    """Number of the first of them, from 0 in the order in which they were sent."""
    records: list[Record]


class Update(NamedTuple):
    """Records and state that the driver pulls from the actor."""

    records: dict[str, Unconfirmed]
    """Unconfirmed records by sender."""
    progress: dict[str, Any]
    """State of the progress line."""
    controller: "ActorHandle[Any] | None"
    """Controller of the run: Ray Train does not give its handle to the driver."""


class Reply(NamedTuple):
    """Answer of the actor to a sender."""

    confirmed: int
    """Number of its records that the driver has confirmed."""
    stop: bool
    """True if the driver wants the workers to save a checkpoint and end."""


class MetricsActor:
    """State of the actor that `create_metrics_actor` starts."""

    def __init__(self) -> None:
        self._records: dict[str, Unconfirmed] = {}
        self._confirmed: Mapping[str, int] = {}
        self._progress: dict[str, Any] = {}
        self._controller: ActorHandle[Any] | None = None
        self._stop = False

    def push(self, sender: str, unconfirmed: Unconfirmed) -> Reply:
        """Replace the records of a sender by all that are unconfirmed."""
        self._records[sender] = unconfirmed
        return Reply(self._confirmed.get(sender, 0), self._stop)

    def request_stop(self) -> None:
        """Ask the workers to save a checkpoint after their current step, and to end."""
        self._stop = True

    def set_progress(self, progress: dict[str, Any]) -> None:
        """Replace the state of the progress line, see `rayfuse.training.progress.format_progress`."""
        self._progress = progress

    def set_controller(self, controller: "ActorHandle[Any]") -> None:
        """Register the controller of the run."""
        self._controller = controller

    def pull(self, confirmed: Mapping[str, int]) -> Update:
        """Forget the records that the driver confirms, by their number per sender, and return the others."""
        self._confirmed = dict(confirmed)
        self._records = {
            name: without_confirmed(found, confirmed.get(name, 0)) for name, found in self._records.items()
        }
        return Update(self._records, self._progress, self._controller)


def without_confirmed(unconfirmed: Unconfirmed, confirmed: int) -> Unconfirmed:
    """Return the records of a sender from number `confirmed` on."""
    first = max(unconfirmed.first, confirmed)
    return Unconfirmed(first, unconfirmed.records[first - unconfirmed.first :])


class RecordReceiver:
    """The driver's side: returns each record once."""

    def __init__(self) -> None:
        self.confirmed: dict[str, int] = {}
        """Number of received records by sender."""

    def receive(self, records: Mapping[str, Unconfirmed]) -> list[Record]:
        """Return the records that are new, and confirm them with the next pull."""
        new: list[Record] = []
        for sender, unconfirmed in records.items():
            found = without_confirmed(unconfirmed, self.confirmed.get(sender, 0))
            new += found.records
            self.confirmed[sender] = found.first + len(found.records)
        return new


class RecordSender:
    """A worker's side: keeps its records until the driver confirms them. Its methods may be called by any thread."""

    def __init__(self, actor: "ActorHandle[MetricsActor]", name: str) -> None:
        self.name = name
        self._actor = actor
        self._unconfirmed = Unconfirmed(0, [])
        self._reply: Any = None
        self._stop = False
        self._lock = threading.Lock()

    def send(self, records: Iterable[Record]) -> None:
        """Send records, and those before that are unconfirmed, without waiting."""
        with self._lock:
            self._read_reply()
            self._unconfirmed = Unconfirmed(self._unconfirmed.first, [*self._unconfirmed.records, *records])
            self._reply = self._push()

    def deliver(self, records: Iterable[Record]) -> None:
        """Send records and wait until the actor has them, also if it is just restarting."""
        import ray
        from ray.exceptions import RayActorError

        self.send(records)
        deadline = time.monotonic() + _DELIVERY_SECONDS
        while time.monotonic() < deadline:
            try:
                ray.get(self._push())
            except RayActorError:
                time.sleep(0.2)
            else:
                return

    def set_progress(self, progress: dict[str, Any]) -> None:
        """Replace the state of the progress line."""
        self._actor.set_progress.remote(progress)

    def is_stop_requested(self) -> bool:
        """Return whether the driver wants the workers to save a checkpoint and end, as of the last reply."""
        with self._lock:
            self._read_reply()
        return self._stop

    def unconfirmed(self) -> dict[str, Unconfirmed]:
        """Return the records that the driver may not have received."""
        return {self.name: self._unconfirmed}

    def _push(self) -> Any:
        push: Any = self._actor.push
        return push.remote(self.name, self._unconfirmed)

    def _read_reply(self) -> None:
        """Take over the reply to the last push, if it is here and the actor was alive."""
        import ray
        from ray.exceptions import RayActorError

        if self._reply is None or not ray.wait([self._reply], timeout=0)[0]:
            return
        with suppress(RayActorError):
            reply: Reply = ray.get(self._reply)
            self._unconfirmed = without_confirmed(self._unconfirmed, reply.confirmed)
            self._stop = reply.stop


def create_metrics_actor() -> "ActorHandle[MetricsActor]":
    """Start the actor on the node of the driver, so that it ends with the driver and not with another node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(MetricsActor)
    actor: ActorHandle[MetricsActor] = remote.remote()
    return actor
