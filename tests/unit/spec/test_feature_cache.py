"""Cached inputs, the folder of the cache, and options that exclude it."""

from pathlib import Path
from typing import Any

import pytest
import tiny_jobs

from rayfuse.errors import SpecError
from rayfuse.spec.encoders import NGramsEncoderConfig
from rayfuse.spec.feature_cache import (
    cached_inputs,
    feature_cache_url,
    frozen_augmented_inputs,
    with_cached_encoder,
    with_running_encoder,
)

FROZEN = {"type": "huggingface", "model": "org/model"}
SWAP = [{"type": "token_swap"}]


def job_with(folder: Path, **overrides: Any) -> Any:
    return tiny_jobs.tiny_job(folder, **{"inputs.text.encoder": FROZEN, **overrides})


def test_frozen_encoders_are_cached_in_the_storage(tmp_path: Path) -> None:
    job = job_with(tmp_path)
    assert cached_inputs(job) == ["text"]
    assert feature_cache_url(job) == str(tmp_path / "runs" / "cache")


@pytest.mark.parametrize(
    "encoder",
    [{"train": "lora"}, {"train": "last:1"}, {"train": "full"}, {"pool": "attention"}],
)
def test_trained_encoders_are_not_cached(tmp_path: Path, encoder: dict[str, str]) -> None:
    assert cached_inputs(job_with(tmp_path, **{"inputs.text.encoder": FROZEN | encoder})) == []


@pytest.mark.parametrize(
    ("pool", "train", "cached"),
    [
        ("mean", "frozen", True),
        ("none", "frozen", True),
        ("transformer", "frozen", False),
        ("mean", "lora", False),
    ],
)
def test_a_video_encoder_is_frozen_if_its_image_encoder_is(
    tmp_path: Path, pool: str, train: str, cached: bool
) -> None:
    video = {
        "type": "video",
        "encoder": {"type": "frames", "pool": pool, "encoder": FROZEN | {"train": train}},
    }
    assert cached_inputs(job_with(tmp_path, **{"inputs.image": video})) == (["image"] if cached else []) + [
        "text"
    ]


@pytest.mark.parametrize(("train", "cached"), [("frozen", ["text"]), ("lora", [])])
def test_the_pretrained_encoder_beside_n_grams_is_cached(
    tmp_path: Path, train: str, cached: list[str]
) -> None:
    encoder = {"type": "ngrams", "pretrained": {**FROZEN, "train": train}}
    job = job_with(tmp_path, **{"inputs.text.encoder": encoder})
    assert cached_inputs(job) == cached
    assert not job.inputs["text"].encoder.frozen


def test_the_encoder_that_is_cached_and_the_one_that_runs(tmp_path: Path) -> None:
    alone = job_with(tmp_path).inputs["text"]
    assert with_cached_encoder(alone) == alone
    assert with_running_encoder(alone) is None
    both = job_with(
        tmp_path, **{"inputs.text.encoder": {"type": "ngrams", "words": 1, "pretrained": FROZEN}}
    ).inputs["text"]
    assert with_cached_encoder(both) == alone
    running = with_running_encoder(both)
    assert running is not None
    assert running.encoder == NGramsEncoderConfig(type="ngrams", words=1)


def test_off_is_parsed_from_false(tmp_path: Path) -> None:
    for off in ("off", False):
        job = job_with(tmp_path, **{"data.feature_cache": off})
        assert job.data.feature_cache == "off"
        assert cached_inputs(job) == []


def test_a_custom_cache_folder(tmp_path: Path) -> None:
    assert feature_cache_url(job_with(tmp_path, **{"data.feature_cache": "shared/cache"})) == str(
        tmp_path / "shared/cache"
    )
    assert (
        feature_cache_url(job_with(tmp_path, **{"data.feature_cache": "s3://bucket/cache"}))
        == "s3://bucket/cache"
    )
    with pytest.raises(SpecError, match="data.feature_cache: "):
        job_with(tmp_path, **{"data.feature_cache": True})


def test_augmented_inputs_are_not_cached(tmp_path: Path) -> None:
    job = job_with(tmp_path, **{"inputs.text.augment": SWAP})
    assert cached_inputs(job) == []
    assert frozen_augmented_inputs(job) == ["text"]


def test_augmentation_with_an_explicit_cache_is_rejected(tmp_path: Path) -> None:
    overrides = {"inputs.text.augment": SWAP, "data.feature_cache": "s3://bucket/cache"}
    with pytest.raises(
        SpecError,
        match=r"data.feature_cache: .*frozen encoder of `text`.*leave augment out.*feature_cache: auto",
    ):
        job_with(tmp_path, **overrides)
    job_with(tmp_path, **overrides, **{"inputs.text.encoder": FROZEN | {"train": "full"}})
