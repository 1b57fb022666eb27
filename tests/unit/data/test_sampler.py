"""Order of rows: every row once an epoch, for any number of workers, lengths and groups; cached samples; dropout."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_jobs

from rayfuse.data.dataset import load_dataset
from rayfuse.data.rows import Row
from rayfuse.data.sampler import BatchSampler, SampleCache, drop_modalities
from rayfuse.data.samples import Preprocessor, Sample
from rayfuse.errors import DataError

WORLDS = (1, 2, 3, 4, 5)


def plans(rows: int, batch_size: int, gradient_accumulation_steps: int = 1) -> dict[str, BatchSampler]:
    rng = np.random.default_rng(rows)
    lengths = rng.integers(1, 200, rows).astype(np.int32)
    groups = rng.integers(0, max(1, rows // 4), rows).astype(np.uint64) << np.uint64(60)
    wanted: dict[str, Any] = {
        "plain": {},
        "lengths": {"lengths": lengths},
        "groups": {"groups": groups},
        "both": {"lengths": lengths, "groups": groups},
    }
    return {
        name: BatchSampler(rows, batch_size, gradient_accumulation_steps, 3, **given)
        for name, given in wanted.items()
    }


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 65, 501])
@pytest.mark.parametrize(("batch_size", "gradient_accumulation_steps"), [(1, 1), (5, 1), (7, 3), (64, 2)])
def test_every_row_once_an_epoch(rows: int, batch_size: int, gradient_accumulation_steps: int) -> None:
    for plan in plans(rows, batch_size, gradient_accumulation_steps).values():
        for world in WORLDS:
            seen: Counter[int] = Counter()
            for step in range(plan.steps_per_epoch):
                parts = [plan.step_indices(2, step, rank, world) for rank in range(world)]
                assert {len(part) for part in parts} == {gradient_accumulation_steps}
                batch = [int(n) for part in parts for micro in part for n in micro]
                assert len(batch) == plan.global_batch(2, step).rows
                seen.update(batch)
            assert seen == Counter(range(rows))


@pytest.mark.parametrize("kind", ["plain", "lengths", "groups", "both"])
def test_a_batch_is_the_same_rows_for_every_number_of_workers(kind: str) -> None:
    plan = plans(203, 10)[kind]
    for step in range(plan.steps_per_epoch):
        batches = [
            {
                int(n)
                for rank in range(world)
                for micro in plan.step_indices(1, step, rank, world)
                for n in micro
            }
            for world in WORLDS
        ]
        assert all(batch == batches[0] for batch in batches)
    again = plans(203, 10)[kind]
    again.step_indices(0, 0, 0, 1)  # another epoch between does not matter
    assert again.step_indices(1, 3, 0, 2)[0].tolist() == plan.step_indices(1, 3, 0, 2)[0].tolist()
    assert again.step_indices(2, 3, 0, 2)[0].tolist() != plan.step_indices(1, 3, 0, 2)[0].tolist()


def test_the_plain_order_is_a_permutation_from_the_seed() -> None:
    order = np.random.default_rng([5, 2]).permutation(30)
    assert BatchSampler(30, 30, seed=5).step_indices(2, 0, 0, 1)[0].tolist() == order.tolist()


def test_batches_by_length_are_in_random_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 4000).astype(np.int32)
    plan = BatchSampler(4000, 16, gradient_accumulation_steps=2, lengths=lengths)

    def padded(plan: BatchSampler) -> float:
        parts = [m for step in range(plan.steps_per_epoch) for m in plan.step_indices(0, step, 0, 1)]
        return sum(len(part) * int(lengths[part].max()) for part in parts) / int(lengths.sum())

    assert padded(plan) < 1.05
    assert padded(BatchSampler(4000, 16, gradient_accumulation_steps=2)) > 1.6
    means = [
        float(np.mean(lengths[np.concatenate(plan.step_indices(0, step, 0, 1))]))
        for step in range(plan.steps_per_epoch)
    ]
    assert abs(float(np.corrcoef(means, range(len(means)))[0, 1])) < 0.2
    for step in range(plan.steps_per_epoch):  # workers get rows of similar length
        sums = [
            sum(int(lengths[part].sum()) for part in plan.step_indices(0, step, rank, 2)) for rank in (0, 1)
        ]
        assert abs(sums[0] - sums[1]) < 0.1 * sum(sums) + 20


def test_groups_stay_together_in_batches_by_length() -> None:
    groups = np.repeat(np.arange(100), 5)
    lengths = np.random.default_rng(0).integers(1, 1000, 500).astype(np.int32)
    plan = BatchSampler(500, 20, groups=groups, lengths=lengths)
    parted = 0
    for step in range(plan.steps_per_epoch):
        batch = groups[plan.step_indices(0, step, 0, 1)[0]]
        runs = 1 + int((batch[1:] != batch[:-1]).sum())
        assert runs == len(set(batch.tolist())), "a group is in one piece"
        parted += sum(count < 5 for count in Counter(batch.tolist()).values())
    assert parted == 0, "20 rows a batch are whole groups of 5"


def everywhere(plan: BatchSampler, epoch: int, step: int, world: int) -> list[int]:
    return [
        int(n) for rank in range(world) for part in plan.step_indices(epoch, step, rank, world) for n in part
    ]


@pytest.mark.parametrize("rows", [1, 7, 64, 65])
@pytest.mark.parametrize(("batch_size", "gradient_accumulation_steps"), [(1, 1), (8, 1), (8, 3), (64, 4)])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_an_epoch_has_every_row_once(
    rows: int, batch_size: int, gradient_accumulation_steps: int, world: int
) -> None:
    plan = BatchSampler(rows, batch_size, gradient_accumulation_steps, seed=3)
    steps = [everywhere(plan, 5, step, world) for step in range(plan.steps_per_epoch)]
    assert Counter(n for step in steps for n in step) == Counter(range(rows))
    assert [len(step) for step in steps] == [
        plan.global_batch(5, step).rows for step in range(plan.steps_per_epoch)
    ]
    for rank in range(world):
        parts = plan.step_indices(5, 0, rank, world)
        assert len(parts) == gradient_accumulation_steps
        assert max(map(len, parts)) <= -(-batch_size // (world * gradient_accumulation_steps))


def test_a_global_batch_is_the_same_on_any_number_of_workers() -> None:
    plans = [
        BatchSampler(100, 16, gradient_accumulation_steps, seed=1) for gradient_accumulation_steps in (1, 2)
    ]
    for step in range(7):
        alone = set(everywhere(plans[0], 0, step, 1))
        for plan in plans:
            for world in (2, 3, 5):
                assert set(everywhere(plan, 0, step, world)) == alone


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return everywhere(BatchSampler(50, 50, seed=seed), epoch, 0, 1)

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(0, 0)), tuple(order(0, 1)), tuple(order(1, 0)), tuple(range(50))}) == 4


def test_samples_are_cached_while_they_fit(rows: list[Row], preprocessor: Preprocessor) -> None:
    store = SampleCache(rows, preprocessor, max_bytes=preprocessor.from_row(rows[0]).nbytes)
    assert len(store) == len(rows)
    assert store[0] is store[0]
    assert store[1] is not store[1]


def test_a_file_that_is_deleted_during_the_run(tmp_path: Path, preprocessor: Preprocessor) -> None:
    row = Row({"text": "a", "label": "red", "image": "gone.png"}, str(tmp_path / "rows.jsonl"), 7)
    with pytest.raises(
        DataError, match=r"rows.jsonl:7: image: gone.png: no such file; the row was valid when"
    ):
        SampleCache([row], preprocessor)[0]


@pytest.mark.parametrize("as_list", [False, True])
def test_a_file_that_changes_during_the_run_is_named(tmp_path: Path, as_list: bool) -> None:
    path = tiny_jobs.make_rows(tmp_path, 20)
    job = tiny_jobs.tiny_job(tmp_path)
    if as_list:
        written = [json.loads(line) for line in path.read_text().splitlines()]
        for row in written:
            row["image"] = [row["image"]] * 2 if "image" in row else None
        tiny_jobs.write_rows(path, written)
        job = job.override(**{"inputs.image.max_items": 2, "data.test": None})
    job, dataset = load_dataset(job)
    rows = dataset.splits["train"]
    preprocessor = Preprocessor(job.inputs, job.tasks)
    with_image = [n for n, row in enumerate(rows) if row.values.get("image")]
    changed = rows[with_image[2]].values["image"]
    name = changed[0] if as_list else changed
    tiny_jobs.write_image(tmp_path / name, "green", random.Random(99))
    samples = SampleCache(rows, preprocessor)
    assert samples[with_image[1]].features["image"]
    with pytest.raises(
        DataError, match=rf"train.jsonl:\d+: image: {name} has changed since the run validated it"
    ):
        samples.empty_copy(0)[with_image[2]]


def test_modality_dropout(rows: list[Row], preprocessor: Preprocessor, job: Any) -> None:
    sample = next(s for s in map(preprocessor.from_row, rows) if len(s.features) == 3)
    outcomes = Counter(
        tuple(drop_modalities(sample, job.inputs, 0.3, (0, epoch, 5)).features) for epoch in range(1000)
    )
    assert set(outcomes) == {("image", "text", "audio"), ("image", "text"), ("text", "audio"), ("text",)}
    assert outcomes["image", "text", "audio"] == pytest.approx(490, abs=60)
    assert outcomes["text",] == pytest.approx(90, abs=35)
    assert drop_modalities(sample, job.inputs, 0.0, (0,)) is sample
    again = [list(drop_modalities(sample, job.inputs, 0.5, (0, 1, n)).features) for n in range(20)]
    assert again == [list(drop_modalities(sample, job.inputs, 0.5, (0, 1, n)).features) for n in range(20)]
    assert drop_modalities(sample, job.inputs, 0.5, (0, 1, 2)).targets == sample.targets


def test_modality_dropout_leaves_an_input(rows: list[Row], preprocessor: Preprocessor, job: Any) -> None:
    sample = next(s for s in map(preprocessor.from_row, rows) if "image" in s.features)
    only = Sample({"image": sample.features["image"]}, sample.keys, sample.targets)
    inputs = {name: options.model_copy(update={"optional": True}) for name, options in job.inputs.items()}
    for n in range(50):
        assert drop_modalities(only, inputs, 0.9, (n,)).features
        assert drop_modalities(sample, inputs, 0.9, (n,)).features


def test_rows_of_a_group_follow_one_another() -> None:
    groups = tuple(n % 10 for n in range(100))
    plan = BatchSampler(100, 20, seed=1, groups=np.array(groups))
    order = [n for step in range(5) for n in everywhere(plan, 0, step, 1)]
    assert sorted(order) == list(range(100))
    assert [len({groups[n] for n in order[i : i + 10]}) for i in range(0, 100, 10)] == [1] * 10
    for step in range(5):
        assert set(everywhere(plan, 0, step, 1)) == set(everywhere(plan, 0, step, 3))
    later = [n for step in range(5) for n in everywhere(plan, 1, step, 1)]
    assert [groups[n] for n in order[::10]] != [groups[n] for n in later[::10]]
    assert (
        BatchSampler(100, 20, seed=1, groups=np.array(groups[::-1])).step_indices(0, 0, 0, 1)[0].tolist()
        != order[:20]
    )
