"""The actor through which workers report to the driver. It runs outside the workers, so it survives them.

A record is {"time": Unix seconds, "step": optimizer steps done, "metrics": {name: number}}, and may also have

    placement_group   hexadecimal id of the workers' placement group: the first record of a worker group
    first_step        epochs done when the first step is about to run
    text              a line for the progress output
    epoch             the epoch of a validation, from 1
    replayed          1 for a validation that may have been reported before a restart
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.actor import ActorHandle

Record = dict[str, Any]


class MetricsActor:
    """State of the actor that `create_metrics_actor` starts."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.progress: dict[str, Any] = {}
        self._controller: ActorHandle[Any] | None = None

    def push(self, records: list[Record]) -> None:
        """Append records."""
        self.records += records

    def set_progress(self, progress: dict[str, Any]) -> None:
        """Replace the state of the progress line, see `rayfuse.training.progress.format_progress`."""
        self.progress = progress

    def pull(self, start: int) -> tuple[list[Record], dict[str, Any]]:
        """Return the records from number `start` on, and the latest progress."""
        return self.records[start:], self.progress

    def set_controller(self, controller: "ActorHandle[Any]") -> None:
        """Register the controller of the run: Ray Train does not give its handle to the driver."""
        self._controller = controller

    def get_controller(self) -> "ActorHandle[Any] | None":
        """Return the controller of the run, None before it has started."""
        return self._controller


def create_metrics_actor() -> "ActorHandle[MetricsActor]":
    """Start the actor on the node of the driver, so that it ends with the driver and not with another node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(MetricsActor)
    actor: ActorHandle[MetricsActor] = remote.remote()
    return actor
