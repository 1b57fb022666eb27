"""Training batches: augmentation, modality dropout and views, the same on every worker."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_jobs
import torch

from rayfuse.data.collate import Batch
from rayfuse.data.dataset import load_dataset
from rayfuse.data.sampler import SampleCache
from rayfuse.data.samples import Preprocessor, Sample
from rayfuse.data.train_batches import augment_sample, build_train_batch, sample_subsets
from rayfuse.errors import SpecError

NOISY = {"inputs.image.augment": [{"type": "gaussian_noise", "sigma": [0.5, 0.5]}]}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_dataset(tiny_jobs.tiny_job(tmp_path_factory.mktemp("rows"), audio=True, **NOISY))


@pytest.fixture(scope="module")
def store(loaded: Any) -> SampleCache:
    job, dataset = loaded
    return SampleCache(dataset.splits["train"], Preprocessor(job.inputs, job.tasks))


def job_with(loaded: Any, **train: Any) -> Any:
    job = loaded[0]
    return type(job).model_validate(job.model_dump() | {"train": job.train.model_dump() | train})


def pixels(batch: Batch, row: int) -> torch.Tensor:
    image = batch.inputs["image"]
    assert image.features is not None
    return image.features["pixel_values"][image.index[row, 0]]


def with_images(store: SampleCache, n: int) -> list[int]:
    return [i for i in range(len(store)) if len(store[i].features) == 3][:n]


def test_augmentation_depends_on_the_row_and_the_epoch_alone(loaded: Any, store: SampleCache) -> None:
    job = loaded[0]
    numbers = with_images(store, 4)
    together = build_train_batch(numbers, store, job, epoch=1)
    alone = build_train_batch(numbers[2:3], store, job, epoch=1)
    later = build_train_batch(numbers, store, job, epoch=2)
    torch.testing.assert_close(pixels(together, 2), pixels(alone, 0), rtol=0, atol=0)
    assert not torch.equal(pixels(together, 2), pixels(later, 2))
    assert not np.array_equal(
        store[numbers[2]].features["image"][0]["pixel_values"], pixels(alone, 0).numpy()
    )
    assert together.source_index is None


def test_equal_values_of_augmented_rows_are_no_longer_equal(loaded: Any, store: SampleCache) -> None:
    sample = store[with_images(store, 1)[0]]
    first, second = (augment_sample(sample, loaded[0].inputs, (0, 0, n)) for n in (1, 2))
    assert first.keys["image"] != second.keys["image"]
    assert first.keys["text"] == second.keys["text"] == sample.keys["text"]
    assert first.features["text"] is sample.features["text"]


def sample_of(*names: str) -> Sample:
    return Sample({name: [{}] for name in names}, {name: [b""] for name in names}, {})


def test_subsets_have_the_required_inputs_and_are_smaller_than_the_whole(loaded: Any) -> None:
    inputs = loaded[0].inputs  # image and audio are optional, the text is not
    whole, rng = sample_of("image", "text", "audio"), np.random.default_rng(0)
    drawn = {tuple(sorted(*sample_subsets(whole, inputs, "random", rng))) for _ in range(60)}
    assert drawn == {("text",), ("image", "text"), ("audio", "text")}
    assert sample_subsets(whole, inputs, "each", rng) == [["text"], ["text", "image"], ["text", "audio"]]
    assert sample_subsets(whole, inputs, "single", rng) == [["text", "image"], ["text", "audio"]]
    assert sample_subsets(sample_of("text"), inputs, "each", rng) == []
    free = {name: options.model_copy(update={"optional": True}) for name, options in inputs.items()}
    assert len(sample_subsets(whole, free, "each", rng)) == 6
    assert sample_subsets(whole, free, "single", rng) == [["image"], ["text"], ["audio"]]
    assert sample_subsets(sample_of("audio"), free, "random", rng) == []


def test_views_follow_their_rows_and_share_what_is_encoded(loaded: Any, store: SampleCache) -> None:
    job = job_with(loaded, subset_loss={"sampling": "each", "weight": 0.6})
    numbers = with_images(store, 2)
    batch = build_train_batch(numbers, store, job, epoch=0)
    assert batch.source_index is not None
    assert batch.source_index.tolist() == [0, 0, 0, 0, 4, 4, 4, 4]
    assert batch.weights.tolist() == pytest.approx([1, 0.2, 0.2, 0.2] * 2)
    assert batch.is_full.tolist() == [True, False, False, False] * 2
    assert batch.inputs["image"].index[:, 0].tolist() == [0, -1, 0, -1, 1, -1, 1, -1]
    assert batch.targets["answer"][:4].unique().numel() == 1
    assert batch.to(torch.device("cpu")).source_index is not None
    again = build_train_batch(numbers[1:], store, job, epoch=0)
    torch.testing.assert_close(pixels(batch, 4), pixels(again, 0), rtol=0, atol=0)


def test_a_consistency_loss_alone_gets_views_that_count_nothing(loaded: Any, store: SampleCache) -> None:
    job = loaded[0]
    content = job.model_dump()
    content["align"]["loss"] = {"type": "consistency"}
    job = type(job).model_validate(content)
    batch = build_train_batch(with_images(store, 3), store, job, epoch=0)
    assert batch.weights.tolist() == [1, 0] * 3
    assert batch.is_full.tolist() == [True, False] * 3


def test_teacher_outputs_of_rows_and_views(loaded: Any, store: SampleCache) -> None:
    answers = {"answer": torch.arange(2.0 * len(store)).reshape(-1, 2)}
    job = job_with(loaded, subset_loss={})
    numbers = with_images(store, 2)
    batch = build_train_batch(numbers, store, job, 0, answers)
    assert batch.teacher_outputs is not None
    assert batch.teacher_outputs["answer"][:, 0].tolist() == [2.0 * numbers[0]] * 2 + [2.0 * numbers[1]] * 2
    filler = build_train_batch([], store, job, 0, answers)
    assert filler.teacher_outputs is None
    assert not filler.is_full.any()


def test_samples_without_augmentation_are_unchanged(loaded: Any, store: SampleCache, tmp_path: Path) -> None:
    plain = {name: options.model_copy(update={"augment": []}) for name, options in loaded[0].inputs.items()}
    sample = store[0]
    found = augment_sample(sample, plain, (0, 0, 0))
    assert found.features == sample.features
    assert found.keys == sample.keys


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            {"inputs.image.optional": False, "train.subset_loss": {}},
            "train.subset_loss: needs two inputs",
        ),
        (
            {"train.deepspeed": {"stage": 3}, "train.ema": {}},
            "train.ema: ema needs whole weights, which ZeRO stage 3 shards",
        ),
        (
            {"inputs.image.optional": False, "align.loss": {"type": "consistency"}},
            "align.loss.0.type: consistency needs an optional input",
        ),
        (
            {"align.loss": {"type": "consistency"}, "train.mixup": {}},
            "align.loss.0.type: consistency cannot be combined with train.mixup",
        ),
    ],
)
def test_options_that_do_not_fit_the_job(overrides: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=problem):
        tiny_jobs.tiny_job(tmp_path, **overrides)
