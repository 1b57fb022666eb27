"""Where workers leave what they measured, and the driver picks it up: an actor outside the workers.

A record is {"time": unix seconds, "step": optimizer steps done, "metrics": {name: number}}, or
{"progress": {…}} for the progress line, which is not kept. The first has the workers' placement group as "room",
the one of the first step "started". One for people to read has it as "text".
One of a validation has its "epoch", and "again" where it may have been told before a restart.
"""

from typing import Any

Record = dict[str, Any]


class Board:
    """The actor's state; `create_board` makes it one."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.progress: dict[str, Any] = {}

    def push(self, records: list[Record]) -> None:
        self.records += records

    def show(self, progress: dict[str, Any]) -> None:
        self.progress = progress

    def pull(self, start: int) -> tuple[list[Record], dict[str, Any]]:
        """Records from number `start` on, and the latest progress."""
        return self.records[start:], self.progress


def create_board() -> Any:
    """Start the actor on the driver's own node; it ends with the driver, and not with any other node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(Board).remote()
