"""Every built-in encoder on rows of its input type, from the file to the saved model."""

from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
from kinds_of_input import make_job
from variants import train_and_reload

from rayfuse.model.predictor import Predictor
from rayfuse.spec.encoders import ENCODERS

NAMES = {"image": "images", "audio": "sound", "text": "text", "video": "clip", "timeseries": "sensor", "tabular": "person", "item_sequence": "history"}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "conv": {"hidden_size": 4},
    "resnet": {"hidden_size": 4, "depths": [1]},
    "gru": {"hidden_size": 8},
    "lstm": {"hidden_size": 8},
    "transformer": {"hidden_size": 8, "heads": 2, "layers": 1},
    "frames": {"encoder": {"type": "conv", "hidden_size": 4}, "pool": "transformer", "layers": 1, "heads": 2},
    "mlp": {"hidden_size": 8},
    "embedding": {"hidden_size": 8},
    "ngrams": {"hidden_size": 8, "characters": [2, 3]},
}
BUILT_IN = [
    (kind, encoder)
    for kind, family in ENCODERS.items()
    for encoder in family
    if encoder not in ("huggingface", "prompt")
]


@pytest.mark.parametrize(("kind", "encoder"), BUILT_IN)
def test_every_built_in_encoder_trains_on_its_input(kind: str, encoder: str, tmp_path: Path) -> None:
    options = {"type": encoder, **SMALL[encoder]}
    if (kind, encoder) == ("image", "transformer"):
        options["patch_size"] = 4
    name = NAMES[kind]
    model, batch = train_and_reload(tmp_path, make_job(tmp_path, **{f"inputs.{name}.encoder": options}), 12)
    assert isinstance(model.encoders[name], ENCODERS[kind].implementation(encoder))
    part = batch.inputs[name]
    assert part.features is not None
    assert (part.index >= 0).any()


def test_word_tags_from_rows_to_predictions(tmp_path: Path) -> None:
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
    [prediction] = Predictor(tmp_path / "model").predict([{"text": ["this", "is", "red"]}])
    assert len(prediction["outputs"]["entities"]["tags"]) == 3
