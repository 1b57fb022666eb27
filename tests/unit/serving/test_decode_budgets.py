"""Budgets of CPU time and memory are shared by the values that are decoded at once."""

import threading

import pytest

from rayfuse.errors import InvalidInputError
from rayfuse.serving.decode_budgets import CpuBudget, MemoryBudget


def test_the_time_of_a_request_is_shared_by_its_values() -> None:
    budget = CpuBudget(10, parallel=2)
    with budget.share() as first, budget.share() as second:
        assert (first.seconds, second.seconds) == (5, 2.5)
        first.used, second.used = 5, 1
    budget.use(3.9)
    with pytest.raises(InvalidInputError, match="more than 10 s of CPU time"), budget.share():
        pass
    with pytest.raises(InvalidInputError, match="more than 10 s of CPU time"):
        budget.use(1)


def test_memory_is_held_by_one_thread_after_the_other() -> None:
    memory = MemoryBudget(100)
    order = []

    def hold() -> None:
        with memory.hold(1000):  # at most all of it
            order.append("second")

    with memory.hold(60):
        thread = threading.Thread(target=hold)
        thread.start()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
