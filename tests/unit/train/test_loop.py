"""What the loop does of what it measures, without an engine."""

from types import SimpleNamespace
from typing import Any

import pytest

from rayfuse.data.batches import Plan
from rayfuse.data.rows import Row
from rayfuse.errors import RayfuseError
from rayfuse.spec.guard import Guard as Options
from rayfuse.train.guard import Guard
from rayfuse.train.loop import Worker
from rayfuse.train.meter import Measured, Place


def measured(loss: float, losses: tuple[float, ...]) -> Measured:
    return Measured(Place(1, 2, 7, 0.1), 0.0, loss, {}, losses, 1.0, 4, {}, 0.0)


def test_a_step_is_shown_or_ends_the_run_with_the_rows_of_the_worker_concerned() -> None:
    shown: list[Measured] = []
    worker: Any = SimpleNamespace(
        guard=Guard(Options()),
        plan=Plan(12, 4, accumulate=2),
        stores={"train": SimpleNamespace(rows=[Row({}, "a.jsonl", line) for line in range(1, 13)])},
        world=2,
        telemetry=SimpleNamespace(step=lambda one, *_: shown.append(one)),
        job=SimpleNamespace(train=SimpleNamespace(epochs=3)),
    )
    worker._origins = lambda *given: Worker._origins(worker, *given)
    Worker._look(worker, None)
    good = measured(1.0, (2.0, 2.0))
    Worker._look(worker, good)
    assert shown == [good]
    with pytest.raises(RayfuseError) as error:
        Worker._look(worker, measured(float("nan"), (2.0, float("nan"))))
    rows = [number + 1 for part in worker.plan.step(1, 2, 1, 2) for number in part]
    assert f"the loss is nan at step 7, on the rows a.jsonl:{rows[0]}, a.jsonl:{rows[1]}; lower" in str(
        error.value
    )
    assert shown == [good]
