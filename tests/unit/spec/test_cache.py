"""Which inputs' encoders run once, where their outputs are kept, and what does not go together with it."""

from pathlib import Path
from typing import Any

import pytest
import tiny_jobs

from rayfuse.errors import SpecError
from rayfuse.spec.cache import augmented_though_frozen, cache_url, cached_inputs

FROZEN = {"type": "huggingface", "model": "org/model"}
SWAP = [{"type": "swap"}]


def job_with(folder: Path, **overrides: Any) -> Any:
    return tiny_jobs.tiny_job(folder, **{"inputs.text.encoder": FROZEN, **overrides})


def test_frozen_encoders_are_cached_in_the_storage(tmp_path: Path) -> None:
    job = job_with(tmp_path)
    assert cached_inputs(job) == ["text"]
    assert cache_url(job) == str(tmp_path / "runs" / "cache")


@pytest.mark.parametrize(
    "encoder",
    [{"train": "lora"}, {"train": "last:1"}, {"train": "full"}, {"pool": "attention"}],
)
def test_encoders_with_something_to_train_are_not(tmp_path: Path, encoder: dict[str, str]) -> None:
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
def test_frames_are_frozen_as_their_encoder_is(tmp_path: Path, pool: str, train: str, cached: bool) -> None:
    video = {
        "type": "video",
        "encoder": {"type": "frames", "pool": pool, "encoder": FROZEN | {"train": train}},
    }
    assert cached_inputs(job_with(tmp_path, **{"inputs.image": video})) == (["image"] if cached else []) + [
        "text"
    ]


def test_off_is_what_yaml_calls_false(tmp_path: Path) -> None:
    for off in ("off", False):
        job = job_with(tmp_path, **{"data.cache": off})
        assert job.data.cache == "off"
        assert cached_inputs(job) == []


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    assert cache_url(job_with(tmp_path, **{"data.cache": "shared/cache"})) == str(tmp_path / "shared/cache")
    assert cache_url(job_with(tmp_path, **{"data.cache": "s3://bucket/cache"})) == "s3://bucket/cache"
    with pytest.raises(SpecError, match="data.cache: "):
        job_with(tmp_path, **{"data.cache": True})


def test_augmentation_keeps_an_input_out(tmp_path: Path) -> None:
    job = job_with(tmp_path, **{"inputs.text.augment": SWAP})
    assert cached_inputs(job) == []
    assert augmented_though_frozen(job) == ["text"]


def test_augmentation_of_what_shall_be_kept_is_refused(tmp_path: Path) -> None:
    asked = {"inputs.text.augment": SWAP, "data.cache": "s3://bucket/cache"}
    with pytest.raises(SpecError, match=r"data.cache: .*`text` is frozen.*leave augment out.*cache: auto"):
        job_with(tmp_path, **asked)
    job_with(tmp_path, **asked, **{"inputs.text.encoder": FROZEN | {"train": "full"}})
