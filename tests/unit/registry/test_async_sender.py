import threading
import time
from typing import Any

import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from rayfuse.registry.async_sender import AsyncSender, SendJob


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayfuse.registry.async_sender._FLUSH_BACKOFF_SECONDS", 0.1)


class Store:
    """Client that fails while `down`, and rejects metrics named `bad`."""

    tracking_uri = "http://mlflow:5000"

    def __init__(self) -> None:
        self.down = False
        self.received: list[str] = []
        self.attempts = 0

    def log_batch(self, run_id: str, metrics: list[Metric]) -> None:
        self.attempts += 1
        if self.down:
            raise MlflowException("API request failed: connection refused")
        if any(metric.key == "bad" for metric in metrics):
            raise MlflowException.invalid_parameter_value("bad name")
        self.received += [metric.key for metric in metrics]


def metric(name: str) -> Metric:
    return Metric(name, 1.0, 0, 0)


def sender(store: Store) -> tuple[AsyncSender, list[str]]:
    messages: list[str] = []
    client: Any = store
    return AsyncSender(client, "run", messages.append), messages


def test_metrics_and_jobs_are_sent_in_order() -> None:
    store = Store()
    sending, messages = sender(store)
    sending.add(metric("a"), metric("b"), SendJob("task", lambda: store.received.append("task")), metric("c"))
    assert sending.flush(5) == 0
    assert store.received == ["a", "b", "task", "c"]
    assert messages == []


def test_adding_does_not_wait_while_mlflow_hangs() -> None:
    store, hanging = Store(), threading.Event()
    sending, _ = sender(store)
    sending.add(SendJob("slow", lambda: hanging.wait() or None))
    sending.add(*[metric("a")] * 1000)
    assert store.received == []
    hanging.set()
    assert sending.flush(5) == 0
    assert len(store.received) == 1000


def test_one_message_when_mlflow_goes_down_and_one_when_it_is_back() -> None:
    store = Store()
    store.down = True
    sending, messages = sender(store)
    sending.add(*[metric(f"m{i}") for i in range(5)])
    assert sending.flush(0.5) == 5
    assert store.attempts >= 2
    assert len(messages) == 1
    assert "is not reachable" in messages[0]
    store.down = False
    assert sending.flush(5) == 0
    assert store.received == [f"m{i}" for i in range(5)]
    assert messages[1:] == ["MLflow is back; sending the metrics logged since"]


def test_a_rejected_metric_does_not_block_the_rest() -> None:
    store = Store()
    sending, messages = sender(store)
    names = [f"m{i}" for i in range(20)] + ["bad"] + [f"m{i}" for i in range(20, 40)] + ["bad"]
    sending.add(*map(metric, names))
    assert sending.flush(20) == 0
    assert store.received == [f"m{i}" for i in range(40)]
    assert len(messages) == 1
    assert "MLflow rejected `bad`, which is dropped" in messages[0]


def test_flush_waits_as_long_as_there_is_progress() -> None:
    store = Store()
    sending, _ = sender(store)
    sending.add(*[SendJob("slow", lambda: time.sleep(0.2))] * 8)
    assert sending.flush(0.5) == 0


def test_a_closed_sender_ends_its_thread() -> None:
    before = threading.active_count()
    sending, _ = sender(Store())
    sending.close()
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before
