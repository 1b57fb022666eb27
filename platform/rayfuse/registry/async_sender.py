"""Background thread that sends the metrics of a run to MLflow, and retries while MLflow is down."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayfuse.registry.mlflow_errors import is_rejected, translate_error

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_METRICS_PER_REQUEST = 1000
_BATCH_INTERVAL_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 30.0
_FLUSH_BACKOFF_SECONDS = 1.0


@dataclass(frozen=True)
class SendJob:
    """A request to MLflow other than metrics."""

    name: str
    """Name in messages."""
    run: Callable[[], None]
    """Sends the request."""


class AsyncSender:
    """Sends metrics and jobs of one run in the order in which they were added.

    A failed request is retried after 1 s, 2 s, … 30 s. What MLflow rejects for its content is dropped with a message,
    so that the rest is sent.
    """

    def __init__(self, client: "MlflowClient", run_id: str, log: Callable[[str], None]) -> None:
        self.last_error: Exception | None = None
        """Error of the last attempt; None if it succeeded."""
        self._client, self._run_id, self._log = client, run_id, log
        self._queue: deque[Metric | SendJob] = deque()
        self._changed = threading.Condition()
        self._flushing = False
        self._closed = False
        self._batch_size = _METRICS_PER_REQUEST
        self._rejected: set[str] = set()
        threading.Thread(target=self._run, name="mlflow", daemon=True).start()

    def add(self, *items: "Metric | SendJob") -> None:
        """Append items to the queue, without waiting."""
        with self._changed:
            self._queue.extend(items)
            self._changed.notify_all()

    def flush(self, timeout: float) -> int:
        """Wait until everything is sent, or `timeout` seconds pass without progress; return the number of items left."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            left = len(self._queue) + 1
            while 0 < len(self._queue) < left:
                left = len(self._queue)
                self._changed.wait_for(lambda: not self._queue, timeout)
            self._flushing = False
            return len(self._queue)

    def close(self) -> None:
        """End the thread; items in the queue are not sent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        failures = 0
        while not self._closed:
            first, metrics = self._next()
            if first is None:
                continue
            try:
                if isinstance(first, SendJob):
                    first.run()
                else:
                    self._client.log_batch(self._run_id, metrics=metrics)
            except Exception as error:  # noqa: BLE001 - training continues whatever the error
                if not self._drop_rejected(first, len(metrics), error):
                    failures += 1
                    self._on_failure(error)
                    self._pause(min(_MAX_BACKOFF_SECONDS, 2.0 ** min(failures - 1, 6)))
            else:
                failures = 0
                self._on_success(max(1, len(metrics)))
                self._pause(_BATCH_INTERVAL_SECONDS)

    def _next(self) -> "tuple[Metric | SendJob | None, list[Metric]]":
        """Wait for an item; return the first, and the metrics that are sent in the same request."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            metrics: list[Metric] = []
            for item in self._queue:
                if isinstance(item, SendJob) or len(metrics) == self._batch_size:
                    break
                metrics.append(item)
            return (self._queue[0] if self._queue else None), metrics

    def _pause(self, seconds: float) -> None:
        with self._changed:
            if not self._flushing:
                self._changed.wait_for(lambda: self._flushing or self._closed, seconds)
            elif self.last_error is not None:
                self._changed.wait_for(lambda: self._closed, min(seconds, _FLUSH_BACKOFF_SECONDS))

    def _remove(self, count: int) -> None:
        with self._changed:
            for _ in range(count):
                self._queue.popleft()
            self._changed.notify_all()

    def _on_failure(self, error: Exception) -> None:
        if self.last_error is None:
            reason = translate_error(error, self._client.tracking_uri) or error
            self._log(f"{reason}; training continues, and metrics are sent once MLflow is back")
        self.last_error = error

    def _on_success(self, count: int) -> None:
        if self.last_error is not None:
            self.last_error = None
            self._log("MLflow is back; sending the metrics logged since")
        self._batch_size = min(_METRICS_PER_REQUEST, self._batch_size * 2)
        self._remove(count)

    def _drop_rejected(self, first: "Metric | SendJob", metrics: int, error: Exception) -> bool:
        """Return whether MLflow rejected the content; if so, halve the batches until the rejected item is alone."""
        if not is_rejected(error):
            return False
        if metrics > 1:
            self._batch_size = metrics // 2
            return True
        name = first.name if isinstance(first, SendJob) else first.key
        if name not in self._rejected:
            self._rejected.add(name)
            self._log(f"MLflow rejected `{name}`, which is dropped: {error}")
        self._remove(1)
        return True
