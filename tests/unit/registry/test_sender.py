import threading
import time
from typing import Any

import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from rayfuse.registry.sender import Sender, Task


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayfuse.registry.sender._HURRIED_WAIT", 0.1)


class Store:
    """Stands in for a client: down while `down`, and refusing metrics called `bad`."""

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


def sender(store: Store) -> tuple[Sender, list[str]]:
    said: list[str] = []
    client: Any = store
    return Sender(client, "run", said.append), said


def test_metrics_and_tasks_go_in_order() -> None:
    store = Store()
    sending, said = sender(store)
    sending.add(metric("a"), metric("b"), Task("task", lambda: store.received.append("task")), metric("c"))
    assert sending.flush(5) == 0
    assert store.received == ["a", "b", "task", "c"]
    assert said == []


def test_adding_does_not_wait_while_the_store_hangs() -> None:
    store, hanging = Store(), threading.Event()
    sending, _ = sender(store)
    sending.add(Task("slow", lambda: hanging.wait(5) or None))
    began = time.monotonic()
    sending.add(*[metric("a")] * 1000)
    assert time.monotonic() - began < 0.5
    hanging.set()
    assert sending.flush(5) == 0


def test_one_message_when_the_store_goes_and_one_when_it_is_back() -> None:
    store = Store()
    store.down = True
    sending, said = sender(store)
    sending.add(*[metric(f"m{i}") for i in range(5)])
    assert sending.flush(0.5) == 5
    assert store.attempts >= 2
    assert len(said) == 1
    assert "does not answer" in said[0]
    store.down = False
    assert sending.flush(5) == 0
    assert store.received == [f"m{i}" for i in range(5)]
    assert said[1:] == ["MLflow answers again; what was kept is being sent"]


def test_what_is_refused_does_not_hold_up_the_rest() -> None:
    store = Store()
    sending, said = sender(store)
    names = [f"m{i}" for i in range(20)] + ["bad"] + [f"m{i}" for i in range(20, 40)] + ["bad"]
    sending.add(*map(metric, names))
    assert sending.flush(20) == 0
    assert store.received == [f"m{i}" for i in range(40)]
    assert len(said) == 1
    assert "refuses `bad`" in said[0]


def test_a_flush_lasts_as_long_as_something_arrives() -> None:
    store = Store()
    sending, _ = sender(store)
    sending.add(*[Task("slow", lambda: time.sleep(0.2))] * 8)
    assert sending.flush(0.5) == 0


def test_a_closed_sender_ends_its_thread() -> None:
    before = threading.active_count()
    sending, _ = sender(Store())
    sending.close()
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before
