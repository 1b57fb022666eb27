"""The thread that brings what a run measured to MLflow, however long MLflow stays away."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayfuse.registry.tracking import explain

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_METRICS_PER_REQUEST = 1000
_GATHER_SECONDS = 0.5
_LONGEST_WAIT = 30.0
_HURRIED_WAIT = 1.0
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


@dataclass(frozen=True)
class Task:
    """Something to do at MLflow besides sending metrics."""

    what: str
    do: Callable[[], None]


class Sender:
    """Sends metrics and tasks of one run in the order in which they were added.

    What fails is kept and tried again, after 1 s, 2 s, … 30 s. What MLflow refuses for its content is dropped with
    a message, so that it does not hold up the rest.
    """

    def __init__(self, client: "MlflowClient", run_id: str, say: Callable[[str], None]) -> None:
        self.problem: Exception | None = None
        """Why the last attempt failed; None while MLflow answers."""
        self._client, self._run_id, self._say = client, run_id, say
        self._queue: deque[Metric | Task] = deque()
        self._changed = threading.Condition()
        self._hurry = False
        self._closed = False
        self._most = _METRICS_PER_REQUEST
        self._refused: set[str] = set()
        threading.Thread(target=self._work, name="mlflow", daemon=True).start()

    def add(self, *items: "Metric | Task") -> None:
        with self._changed:
            self._queue.extend(items)
            self._changed.notify_all()

    def flush(self, timeout: float) -> int:
        """Wait until all is sent, or `timeout` seconds pass in which nothing is; returns what is left."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            left = len(self._queue) + 1
            while 0 < len(self._queue) < left:
                left = len(self._queue)
                self._changed.wait_for(lambda: not self._queue, timeout)
            self._hurry = False
            return len(self._queue)

    def close(self) -> None:
        """End the thread; what is left stays unsent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        failures = 0
        while not self._closed:
            first, metrics = self._next()
            if first is None:
                continue
            try:
                if isinstance(first, Task):
                    first.do()
                else:
                    self._client.log_batch(self._run_id, metrics=metrics)
            except Exception as error:  # noqa: BLE001 - whatever it is, training goes on
                if not self._drop_refused(first, len(metrics), error):
                    failures += 1
                    self._note_failure(error)
                    self._pause(min(_LONGEST_WAIT, 2.0 ** min(failures - 1, 6)))
            else:
                failures = 0
                self._note_success(max(1, len(metrics)))
                self._pause(_GATHER_SECONDS)

    def _next(self) -> "tuple[Metric | Task | None, list[Metric]]":
        """What is first in the queue, once there is something, and the metrics that go in one request with it."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            metrics: list[Metric] = []
            for item in self._queue:
                if isinstance(item, Task) or len(metrics) == self._most:
                    break
                metrics.append(item)
            return (self._queue[0] if self._queue else None), metrics

    def _pause(self, seconds: float) -> None:
        with self._changed:
            if not self._hurry:
                self._changed.wait_for(lambda: self._hurry or self._closed, seconds)
            elif self.problem is not None:
                self._changed.wait_for(lambda: self._closed, min(seconds, _HURRIED_WAIT))

    def _remove(self, count: int) -> None:
        with self._changed:
            for _ in range(count):
                self._queue.popleft()
            self._changed.notify_all()

    def _note_failure(self, error: Exception) -> None:
        if self.problem is None:
            reason = explain(error, self._client.tracking_uri) or error
            self._say(f"{reason}; training goes on, and what is measured is kept and sent later")
        self.problem = error

    def _note_success(self, count: int) -> None:
        if self.problem is not None:
            self.problem = None
            self._say("MLflow answers again; what was kept is being sent")
        self._most = min(_METRICS_PER_REQUEST, self._most * 2)
        self._remove(count)

    def _drop_refused(self, first: "Metric | Task", metrics: int, error: Exception) -> bool:
        """Whether MLflow refused the content itself: then ask in smaller requests until the one to blame is found."""
        if getattr(error, "error_code", None) not in _REFUSALS:
            return False
        if metrics > 1:
            self._most = metrics // 2
            return True
        name = first.what if isinstance(first, Task) else first.key
        if name not in self._refused:
            self._refused.add(name)
            self._say(f"MLflow refuses `{name}`: {error}")
        self._remove(1)
        return True
