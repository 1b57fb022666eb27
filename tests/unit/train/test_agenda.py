"""When to save inside an epoch."""

import torch

from rayfuse.spec.checkpointing import Checkpointing
from rayfuse.train.agenda import Agenda

CPU = torch.device("cpu")


class Clock:
    """Time that passes by a given amount at each step."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def due_steps(
    options: Checkpointing, seconds_per_step: float, steps: int, preempted=lambda: False
) -> list[int]:
    clock = Clock()
    agenda = Agenda(options, 0, 1, CPU, preempted, clock)
    found = []
    for step in range(1, steps + 1):
        clock.now += seconds_per_step
        if agenda.due(step):
            found.append(step)
            agenda.saved()
    return found


def test_by_the_clock() -> None:
    assert due_steps(Checkpointing(every=10), 1.0, 35) == [10, 20, 30]
    assert due_steps(Checkpointing(every=10), 0.125, 250) == [81, 161, 241]
    assert due_steps(Checkpointing(every=None), 1.0, 35) == []


def test_by_steps() -> None:
    assert due_steps(Checkpointing(every=None, steps=15), 0.01, 50) == [15, 30, 45]
    assert due_steps(Checkpointing(every=10, steps=15), 1.0, 35) == [10, 15, 25, 30]


def test_a_notice_is_heard_once_until_it_is_gone() -> None:
    answers = iter([False, True, True, True, False, True])
    assert due_steps(Checkpointing(every=None), 1.0, 6, lambda: next(answers)) == [2, 6]


def test_fast_steps_seldom_meet() -> None:
    asked = []
    due_steps(Checkpointing(every=None), 0.001, 5000, lambda: bool(asked.append(1)))
    assert len(asked) <= 8
