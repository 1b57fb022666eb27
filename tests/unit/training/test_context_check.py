"""Prompts and replies that exceed the positions of a language model are an error before the first step."""

from pathlib import Path

import pytest
import tiny_generation

from rayfuse.data.targets import check_targets
from rayfuse.errors import DataError
from rayfuse.model.fused import FusedModel
from rayfuse.training.context_check import check_context_lengths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context")
    tiny_generation.make_rows(folder, 8, 4)
    return folder


@pytest.mark.parametrize(
    ("size", "align", "fits"), [(16, "linear", True), (40, "transformer", True), (40, "linear", False)]
)
def test_soft_tokens_count(size: int, align: str, fits: bool, folder: Path) -> None:
    """64 patches fit into 256 positions, and 400 do not; of a Q-Former, there are as many as queries."""
    patches = {
        "type": "transformer",
        "hidden_size": 8,
        "heads": 2,
        "layers": 1,
        "pool": "none",
        "patch_size": 2,
    }
    overrides = {
        "inputs.image": {"type": "image", "size": size, "optional": True, "encoder": patches},
        "align": {"type": align, "dim": 16},
    }
    job, _ = tiny_generation.load_batch(tiny_generation.generation_job(folder, "gpt2", **overrides), [0])
    model = FusedModel(job)
    check_targets(job)
    if fits:
        check_context_lengths(job, model)
        return
    with pytest.raises(
        DataError, match=r"tasks\.answer: .* above the 256 positions of .*gpt2; lower max_tokens"
    ):
        check_context_lengths(job, model)


def test_text_is_checked_without_the_model(folder: Path) -> None:
    job = tiny_generation.generation_job(folder, "gpt2", task={"max_tokens": 300})
    with pytest.raises(DataError, match=r"tasks\.answer\.model: prompt, .* above the 256 positions"):
        check_targets(job)
