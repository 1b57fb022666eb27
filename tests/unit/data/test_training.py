"""What training makes of rows: the same whichever worker reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_jobs
import torch

from rayfuse.data.batches import Batch, SampleStore
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import Sample, SampleMaker
from rayfuse.data.training import augmented, subsets_of, training_batch
from rayfuse.errors import SpecError

NOISY = {"inputs.image.augment": [{"type": "noise", "sigma": [0.5, 0.5]}]}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_dataset(tiny_jobs.tiny_job(tmp_path_factory.mktemp("rows"), audio=True, **NOISY))


@pytest.fixture(scope="module")
def store(loaded: Any) -> SampleStore:
    job, dataset = loaded
    return SampleStore(dataset.splits["train"], SampleMaker(job.inputs, job.tasks))


def job_with(loaded: Any, **train: Any) -> Any:
    job = loaded[0]
    return type(job).model_validate(job.model_dump() | {"train": job.train.model_dump() | train})


def pixels(batch: Batch, row: int) -> torch.Tensor:
    image = batch.inputs["image"]
    assert image.features is not None
    return image.features["pixel_values"][image.index[row, 0]]


def with_pictures(store: SampleStore, n: int) -> list[int]:
    return [i for i in range(len(store)) if len(store[i].features) == 3][:n]


def test_augmentation_depends_on_the_row_and_the_epoch_alone(loaded: Any, store: SampleStore) -> None:
    job = loaded[0]
    numbers = with_pictures(store, 4)
    together = training_batch(numbers, store, job, epoch=1)
    alone = training_batch(numbers[2:3], store, job, epoch=1)
    later = training_batch(numbers, store, job, epoch=2)
    torch.testing.assert_close(pixels(together, 2), pixels(alone, 0), rtol=0, atol=0)
    assert not torch.equal(pixels(together, 2), pixels(later, 2))
    assert not np.array_equal(
        store[numbers[2]].features["image"][0]["pixel_values"], pixels(alone, 0).numpy()
    )
    assert together.source is None


def test_equal_values_of_augmented_rows_are_no_longer_equal(loaded: Any, store: SampleStore) -> None:
    sample = store[with_pictures(store, 1)[0]]
    first, second = (augmented(sample, loaded[0].inputs, (0, 0, n)) for n in (1, 2))
    assert first.keys["image"] != second.keys["image"]
    assert first.keys["text"] == second.keys["text"] == sample.keys["text"]
    assert first.features["text"] is sample.features["text"]


def sample_of(*names: str) -> Sample:
    return Sample({name: [{}] for name in names}, {name: [b""] for name in names}, {})


def test_subsets_have_the_required_inputs_and_are_smaller_than_the_whole(loaded: Any) -> None:
    inputs = loaded[0].inputs  # the picture and the clip are optional, the text is not
    whole, chance = sample_of("image", "text", "audio"), np.random.default_rng(0)
    drawn = {tuple(sorted(*subsets_of(whole, inputs, "random", chance))) for _ in range(60)}
    assert drawn == {("text",), ("image", "text"), ("audio", "text")}
    assert subsets_of(whole, inputs, "each", chance) == [["text"], ["text", "image"], ["text", "audio"]]
    assert subsets_of(whole, inputs, "single", chance) == [["text", "image"], ["text", "audio"]]
    assert subsets_of(sample_of("text"), inputs, "each", chance) == []
    free = {name: options.model_copy(update={"optional": True}) for name, options in inputs.items()}
    assert len(subsets_of(whole, free, "each", chance)) == 6
    assert subsets_of(whole, free, "single", chance) == [["image"], ["text"], ["audio"]]
    assert subsets_of(sample_of("audio"), free, "random", chance) == []


def test_views_follow_their_rows_and_share_what_is_encoded(loaded: Any, store: SampleStore) -> None:
    job = job_with(loaded, subset_loss={"draw": "each", "weight": 0.6})
    numbers = with_pictures(store, 2)
    batch = training_batch(numbers, store, job, epoch=0)
    assert batch.source is not None
    assert batch.source.tolist() == [0, 0, 0, 0, 4, 4, 4, 4]
    assert batch.weights.tolist() == pytest.approx([1, 0.2, 0.2, 0.2] * 2)
    assert batch.whole.tolist() == [True, False, False, False] * 2
    assert batch.inputs["image"].index[:, 0].tolist() == [0, -1, 0, -1, 1, -1, 1, -1]
    assert batch.targets["answer"][:4].unique().numel() == 1
    assert batch.to(torch.device("cpu")).source is not None
    again = training_batch(numbers[1:], store, job, epoch=0)
    torch.testing.assert_close(pixels(batch, 4), pixels(again, 0), rtol=0, atol=0)


def test_a_consistency_loss_alone_gets_views_that_count_nothing(loaded: Any, store: SampleStore) -> None:
    job = loaded[0]
    content = job.model_dump()
    content["align"]["loss"] = {"type": "consistency"}
    job = type(job).model_validate(content)
    batch = training_batch(with_pictures(store, 3), store, job, epoch=0)
    assert batch.weights.tolist() == [1, 0] * 3
    assert batch.whole.tolist() == [True, False] * 3


def test_teachers_answers_come_with_rows_and_views(loaded: Any, store: SampleStore) -> None:
    answers = {"answer": torch.arange(2.0 * len(store)).reshape(-1, 2)}
    job = job_with(loaded, subset_loss={})
    numbers = with_pictures(store, 2)
    batch = training_batch(numbers, store, job, 0, answers)
    assert batch.teacher is not None
    assert batch.teacher["answer"][:, 0].tolist() == [2.0 * numbers[0]] * 2 + [2.0 * numbers[1]] * 2
    filler = training_batch([], store, job, 0, answers)
    assert filler.teacher is None
    assert not filler.whole.any()


def test_nothing_changes_without_aids(loaded: Any, store: SampleStore, tmp_path: Path) -> None:
    plain = {name: options.model_copy(update={"augment": []}) for name, options in loaded[0].inputs.items()}
    sample = store[0]
    found = augmented(sample, plain, (0, 0, 0))
    assert found.features == sample.features
    assert found.keys == sample.keys


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            {"inputs.image.optional": False, "train.subset_loss": {}},
            "train.subset_loss: no row has a proper subset",
        ),
        ({"train.deepspeed": {"stage": 3}, "train.ema": {}}, "train.ema: ZeRO stage 3 leaves no worker"),
        (
            {"inputs.image.optional": False, "align.loss": {"type": "consistency"}},
            "align.loss.0.type: no row has a proper subset",
        ),
        (
            {"align.loss": {"type": "consistency"}, "train.mixup": {}},
            "align.loss.0.type: rows mixed by train.mixup",
        ),
    ],
)
def test_aids_that_a_job_cannot_have(overrides: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=problem):
        tiny_jobs.tiny_job(tmp_path, **overrides)
