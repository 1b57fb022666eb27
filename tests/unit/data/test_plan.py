"""Which rows make which batch: every row once an epoch, whatever the number of workers, lengths and groups."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from rayfuse.data.batches import Plan

WORLDS = (1, 2, 3, 4, 5)


def plans(rows: int, batch_size: int, accumulate: int = 1) -> dict[str, Plan]:
    chance = np.random.default_rng(rows)
    lengths = chance.integers(1, 200, rows).astype(np.int32)
    groups = chance.integers(0, max(1, rows // 4), rows).astype(np.uint64) << np.uint64(60)
    wanted: dict[str, Any] = {
        "plain": {},
        "lengths": {"lengths": lengths},
        "groups": {"groups": groups},
        "both": {"lengths": lengths, "groups": groups},
    }
    return {name: Plan(rows, batch_size, accumulate, 3, **given) for name, given in wanted.items()}


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 65, 501])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 1), (5, 1), (7, 3), (64, 2)])
def test_every_row_once_an_epoch(rows: int, batch_size: int, accumulate: int) -> None:
    for plan in plans(rows, batch_size, accumulate).values():
        for world in WORLDS:
            seen: Counter[int] = Counter()
            for step in range(plan.steps):
                parts = [plan.step(2, step, rank, world) for rank in range(world)]
                assert {len(part) for part in parts} == {accumulate}
                batch = [int(n) for part in parts for micro in part for n in micro]
                assert len(batch) == plan.size(step)
                seen.update(batch)
            assert seen == Counter(range(rows))


@pytest.mark.parametrize("kind", ["plain", "lengths", "groups", "both"])
def test_a_batch_is_the_same_rows_for_every_number_of_workers(kind: str) -> None:
    plan = plans(203, 10)[kind]
    for step in range(plan.steps):
        batches = [
            {int(n) for rank in range(world) for micro in plan.step(1, step, rank, world) for n in micro}
            for world in WORLDS
        ]
        assert all(batch == batches[0] for batch in batches)
    again = plans(203, 10)[kind]
    again.step(0, 0, 0, 1)  # another epoch between does not matter
    assert again.step(1, 3, 0, 2)[0].tolist() == plan.step(1, 3, 0, 2)[0].tolist()
    assert again.step(2, 3, 0, 2)[0].tolist() != plan.step(1, 3, 0, 2)[0].tolist()


def test_the_plain_order_is_a_permutation_from_the_seed() -> None:
    order = np.random.default_rng([5, 2]).permutation(30)
    assert Plan(30, 30, seed=5).step(2, 0, 0, 1)[0].tolist() == order.tolist()


def test_batches_by_length_hold_like_rows_in_no_order_of_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 4000).astype(np.int32)
    plan = Plan(4000, 16, accumulate=2, lengths=lengths)

    def padded(plan: Plan) -> float:
        parts = [m for step in range(plan.steps) for m in plan.step(0, step, 0, 1)]
        return sum(len(part) * int(lengths[part].max()) for part in parts) / int(lengths.sum())

    assert padded(plan) < 1.05
    assert padded(Plan(4000, 16, accumulate=2)) > 1.6
    means = [float(np.mean(lengths[np.concatenate(plan.step(0, step, 0, 1))])) for step in range(plan.steps)]
    assert abs(float(np.corrcoef(means, range(len(means)))[0, 1])) < 0.2
    for step in range(plan.steps):  # workers get rows of like cost
        sums = [sum(int(lengths[part].sum()) for part in plan.step(0, step, rank, 2)) for rank in (0, 1)]
        assert abs(sums[0] - sums[1]) < 0.1 * sum(sums) + 20


def test_groups_stay_together_in_batches_by_length() -> None:
    groups = np.repeat(np.arange(100), 5)
    lengths = np.random.default_rng(0).integers(1, 1000, 500).astype(np.int32)
    plan = Plan(500, 20, groups=groups, lengths=lengths)
    parted = 0
    for step in range(plan.steps):
        batch = groups[plan.step(0, step, 0, 1)[0]]
        runs = 1 + int((batch[1:] != batch[:-1]).sum())
        assert runs == len(set(batch.tolist())), "a group is in one piece"
        parted += sum(count < 5 for count in Counter(batch.tolist()).values())
    assert parted == 0, "20 rows a batch are whole groups of 5"
