"""When to save inside an epoch."""

from rayfuse.spec.checkpointing import CheckpointingConfig
from rayfuse.training.checkpoint_trigger import CheckpointTrigger
from rayfuse.training.distributed import DistributedContext


class Clock:
    """Clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def due_steps(
    options: CheckpointingConfig, seconds_per_step: float, steps: int, preempted=lambda: False
) -> list[int]:
    clock = Clock()
    trigger = CheckpointTrigger(options, DistributedContext(), preempted, clock=clock)
    found = []
    for step in range(1, steps + 1):
        clock.now += seconds_per_step
        if trigger.should_save(step):
            found.append(step)
            trigger.mark_saved()
    return found


def test_by_the_clock() -> None:
    assert due_steps(CheckpointingConfig(interval=10), 1.0, 35) == [10, 20, 30]
    assert due_steps(CheckpointingConfig(interval=10), 0.125, 250) == [81, 161, 241]
    assert due_steps(CheckpointingConfig(interval=None), 1.0, 35) == []


def test_by_steps() -> None:
    assert due_steps(CheckpointingConfig(interval=None, every_n_steps=15), 0.01, 50) == [15, 30, 45]
    assert due_steps(CheckpointingConfig(interval=10, every_n_steps=15), 1.0, 35) == [10, 15, 25, 30]


def test_a_preemption_notice_saves_once() -> None:
    notices = iter([False, True, True, True, False, True])
    assert due_steps(CheckpointingConfig(interval=None), 1.0, 6, lambda: next(notices)) == [2, 6]


def test_fast_steps_rarely_synchronize() -> None:
    calls: list[int] = []
    due_steps(CheckpointingConfig(interval=None), 0.001, 5000, lambda: bool(calls.append(1)))
    assert len(calls) <= 8


def test_a_stop_saves_after_the_current_step() -> None:
    requests = iter([False, True])
    clock = Clock()
    trigger = CheckpointTrigger(
        CheckpointingConfig(interval=None),
        DistributedContext(),
        is_stop_requested=lambda: next(requests),
        clock=clock,
    )
    clock.now = 5.0
    assert not trigger.should_save(1)
    assert not trigger.must_stop
    clock.now = 10.0
    assert trigger.should_save(2)
    assert trigger.must_stop
