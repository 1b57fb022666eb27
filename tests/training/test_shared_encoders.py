"""Inputs that share an encoder."""

from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
import tiny_jobs
import torch
from variants import train_and_reload

import rayfuse
from rayfuse.errors import SpecError
from rayfuse.model.fused import FusedModel, trainable_state_dict
from rayfuse.training.param_groups import build_param_groups


def pair_job(folder: Path, encoder: dict[str, Any], **overrides: Any) -> Any:
    """Return a job that finds an answer by its question, of which both are texts, in rows of both."""
    inputs = {
        "question": {"type": "text", "column": "text", "max_tokens": 8, "encoder": encoder},
        "answer": {"type": "text", "column": "label", "max_tokens": 6, "shares_encoder": "question"},
    }
    task = {"type": "retrieval", "inputs": ["question", "answer"], "dim": 8}
    path = folder / "train.jsonl"
    if not path.exists():
        rows = [
            {"text": f"which colour is {color} ?", "label": color} for color in ("red", "green", "blue") * 6
        ]
        folder.mkdir(parents=True, exist_ok=True)
        tiny_jobs.write_rows(path, rows)
        tiny_jobs.write_rows(folder / "test.jsonl", rows)
    changes = {"train.early_stopping": None, "inputs": inputs, "tasks": {"find": task}, **overrides}
    return tiny_jobs.tiny_job(folder, **changes)


@pytest.mark.parametrize("train", ["frozen", "lora", "full"])
def test_both_inputs_train_one_encoder(train: str, tmp_path: Path) -> None:
    bert = tiny_encoders.bert(tmp_path / "bert")
    encoder = {"type": "huggingface", "model": str(bert), "train": train, "lr": 0.01}
    job = pair_job(tmp_path / "rows", encoder)
    model, batch = train_and_reload(tmp_path, job)
    assert model.encoders["answer"] is model.encoders["question"]
    assert not [name for name in trainable_state_dict(model) if name.startswith("encoders.answer")]
    assert sorted(path.name for path in (tmp_path / "model" / "encoders").iterdir()) == ["question"]
    grouped = [parameter for group in build_param_groups(job, model) for parameter in group["params"]]
    assert len(grouped) == len({id(parameter) for parameter in grouped})
    same = batch.inputs["question"].features
    with torch.no_grad():
        tokens = [model.encoders[name](**same)[0] for name in ("question", "answer")]
    torch.testing.assert_close(*tokens)
    rayfuse.export(tmp_path / "model", tmp_path / "merged")
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == ["question"]


def test_the_encoder_of_a_sweep_or_a_stored_job_is_that_of_its_owner(tmp_path: Path) -> None:
    job = pair_job(tmp_path, {"type": "transformer", "hidden_size": 8, "heads": 2})
    content = job.model_dump(mode="json")
    assert "encoder" not in content["inputs"]["answer"]
    content["inputs"]["question"]["encoder"]["hidden_size"] = 16
    again = type(job).model_validate(content)
    assert again.inputs["answer"].encoder.hidden_size == 16
    assert FusedModel(again).encoders["answer"].width == 16


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"inputs.answer.shares_encoder": "reply"},
            r"inputs\.answer\.shares_encoder: no other input `reply`; .*question",
        ),
        ({"inputs.answer.shares_encoder": "answer"}, r"no other input `answer`; .*question"),
        (
            {"inputs.question.shares_encoder": "answer"},
            r"inputs\.question\.shares_encoder: `answer` has the encoder of `question`; name that input",
        ),
        (
            {"inputs.answer.encoder": {"type": "gru"}},
            r"the encoder of `answer` is not that of `question`; remove inputs\.answer\.encoder",
        ),
        (
            {"inputs.question": {"type": "image", "column": "text"}},
            r"`question` is an input of type image; name one of type text",
        ),
        (
            {"inputs.question.encoder": {"type": "ngrams"}},
            r"the n-grams of `question` are those of its own texts",
        ),
    ],
)
def test_invalid_pairs(overrides: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        pair_job(tmp_path, {"type": "conv"}, **overrides)


def test_values_that_the_shared_encoder_cannot_read(tmp_path: Path) -> None:
    """Its positions limit the tokens of both inputs, and the options of clips must be the same."""
    bert = tiny_encoders.bert(tmp_path / "bert")
    job = pair_job(tmp_path, {"type": "huggingface", "model": str(bert)}, **{"inputs.answer.max_tokens": 64})
    with pytest.raises(SpecError, match=r"inputs\.answer: max_tokens: 64 is above the 32 positions"):
        FusedModel(job)
    clips = {
        "question": {"type": "audio", "column": "text", "sample_rate": 8000},
        "answer": {"type": "audio", "column": "label", "sample_rate": 16000, "shares_encoder": "question"},
    }
    message = (
        r"inputs\.answer\.shares_encoder: `sample_rate` is not that of `question`, whose encoder reads it"
    )
    with pytest.raises(SpecError, match=message):
        pair_job(tmp_path, {"type": "conv"}, inputs=clips)
