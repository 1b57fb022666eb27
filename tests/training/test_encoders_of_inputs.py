"""Every encoder on rows of its own kind of input, from the file to the saved model."""

from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
from kinds_of_input import make_job
from variants import train_and_reload

from rayfuse.model.encoders import ENCODERS
from rayfuse.model.predictor import Predictor

NAMES = {"image": "pictures", "audio": "sound", "text": "text", "video": "clip", "series": "sensor", "table": "person", "sequence": "history"}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "conv": {"width": 4},
    "resnet": {"width": 4, "blocks": [1]},
    "gru": {"width": 8},
    "lstm": {"width": 8},
    "transformer": {"width": 8, "heads": 2, "layers": 1},
    "frames": {"encoder": {"type": "conv", "width": 4}, "pool": "transformer", "layers": 1, "heads": 2},
    "mlp": {"width": 8},
    "embedding": {"width": 8},
}
BUILT_IN = [(kind, encoder) for kind, encoder in ENCODERS if encoder != "huggingface"]


@pytest.mark.parametrize(("kind", "encoder"), BUILT_IN)
def test_every_built_in_encoder_trains_on_its_input(kind: str, encoder: str, tmp_path: Path) -> None:
    options = {"type": encoder, **SMALL[encoder]}
    if (kind, encoder) == ("image", "transformer"):
        options["patch"] = 4
    name = NAMES[kind]
    model, batch = train_and_reload(tmp_path, make_job(tmp_path, **{f"inputs.{name}.encoder": options}), 12)
    assert isinstance(model.encoders[name], ENCODERS[kind, encoder])
    part = batch.inputs[name]
    assert part.features is not None
    assert (part.index >= 0).any()


def test_tags_of_words_from_rows_to_answers(tmp_path: Path) -> None:
    rows = [
        {
            "text": ["which", "colour", "is", "this"][i % 3 :],
            "tags": ["O", "B-thing", "O", "I-thing"][i % 3 :],
        }
        for i in range(32)
    ]
    bert = {
        "type": "huggingface",
        "model": str(tiny_encoders.bert(tmp_path / "bert")),
        "train": "full",
        "pool": "none",
    }
    overrides = {
        "inputs": {"text": {"type": "text", "max_tokens": 16, "encoder": bert}},
        "tasks": {"entities": {"type": "tagging", "input": "text", "column": "tags"}},
    }
    train_and_reload(tmp_path, make_job(tmp_path, rows, **overrides))
    [answer] = Predictor(tmp_path / "model").predict([{"text": ["this", "is", "red"]}])
    assert len(answer["outputs"]["entities"]["tags"]) == 3
