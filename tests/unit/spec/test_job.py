"""Properties of a job."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from rayfuse.errors import SpecError
from rayfuse.spec.job import Job
from rayfuse.spec.load import validate_spec


def job(**fields: Any) -> Job:
    spec = {
        "kind": "job",
        "name": "tiny",
        "data": {"train": "/train.jsonl"},
        "inputs": {"image": {"type": "image", "encoder": {"type": "conv"}, "optional": True}},
        "fusion": {"type": "concat"},
        "tasks": {"answer": {"type": "classification"}, "size": {"type": "regression"}},
        "output": {"storage": "/runs"},
    }
    return validate_spec(spec | fields, Job, "x.yaml")


def test_metrics_have_task_and_mode() -> None:
    metrics = job().metric_modes()
    assert metrics["loss"] == metrics["answer/loss"] == metrics["size/rmse"] == "min"
    assert metrics["answer/accuracy"] == metrics["answer/f1_macro"] == metrics["size/r2"] == "max"
    assert "size/accuracy" not in metrics


def test_the_best_checkpoint_is_chosen_by_loss_unless_training_may_stop_early() -> None:
    assert job().selection_metric == "loss"
    assert job(train={"early_stopping": {"metric": "answer/accuracy"}}).selection_metric == "answer/accuracy"


def test_the_registered_name_is_the_jobs_unless_given() -> None:
    assert job().registered_model_name == "tiny"
    assert job(output={"storage": "/runs", "registered_model": "other"}).registered_model_name == "other"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {
            "train": {
                "deepspeed": "s3://b/zero.json",
                "max_grad_norm": None,
                "optimizer": {"betas": [0.8, 0.9]},
            }
        },
        {"data": {"train": "/t", "validation": "/v", "max_bad_rows": "5%"}},
        {"tasks": {"answer": {"type": "classification", "classes": ["a", 1, True, "2"]}}},
    ],
)
def test_a_resolved_job_round_trips_through_json(fields: dict[str, Any]) -> None:
    spec = job(**fields)
    assert validate_spec(json.loads(spec.model_dump_json()), Job, "stored") == spec


def test_a_job_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        job().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"validation": {"fraction": 0.5}, "test": {"fraction": 0.5}},
            "data.test.fraction: validation and test are 1 of the rows; leave some to train on",
        ),
        ({"group": "user", "time": "day"}, "data.time: cannot be combined with data.group; use one of them"),
        (
            {"validation": "/validation.csv", "group": "user"},
            "data.group: validation and test are separate rows; use `validation: {fraction: 0.1}`",
        ),
        ({"stratify": True}, "data.stratify: `true` is the target of the only task"),
        ({"fold": 2}, "data.fold: the number of folds is missing; add data.folds"),
        ({"folds": 5, "fold": 6}, "data.fold: 6 is above data.folds, 5; use 1 to 5"),
        ({"folds": 5, "test": {"fraction": 0.2}}, "data.test.fraction: cannot be combined with data.folds"),
        ({"folds": 5, "time": "day"}, "data.folds: would train on rows that are newer than the test rows"),
        (
            {"folds": 2, "validation": {"fraction": 0.5}},
            "data.validation.fraction: validation and test are 1 of the rows; leave some to train on",
        ),
    ],
)
def test_splits_that_contradict_each_other(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        job(data={"train": "/train.jsonl", **options})
    assert problem in str(caught.value)


def test_rows_are_split_by_the_column_of_the_option() -> None:
    data = {"train": "/train.jsonl", "test": {"fraction": 0.2}}
    only = {"tasks": {"answer": {"type": "classification", "column": "label"}}}
    assert job(data=data).split_columns() == {}
    assert job(data={**data, "group": "user"}).split_columns() == {"group": "user"}
    assert job(data={**data, "stratify": True}, **only).split_columns() == {"stratify": "label"}
    both = job(data={**data, "group": "user", "stratify": "ill"})
    assert both.split_columns() == {"group": "user", "stratify": "ill"}
    assert job(data=data).data.fractions == {"validation": 0.1, "test": 0.2}


def test_a_fold_is_a_fraction_of_the_rows() -> None:
    folds = job(data={"train": "/train.jsonl", "test": "/test.jsonl", "folds": 5}).data
    assert folds.fractions == {"validation": 0.1}
    assert folds.of_fold(3).fractions == {"validation": 0.1, "test": 0.2}


def test_inputs_have_a_default_encoder_and_a_job_a_default_fusion() -> None:
    inputs = {
        "photo": {"type": "image"},
        "sound": {"type": "audio"},
        "clip": {"type": "video"},
        "review": {"type": "text"},
        "sensor": {"type": "timeseries", "channels": ["x"]},
        "person": {"type": "tabular", "columns": ["age"]},
        "clicks": {"type": "item_sequence"},
    }
    spec = {
        "kind": "job",
        "name": "tiny",
        "data": {"train": "/train.jsonl"},
        "inputs": inputs,
        "tasks": {"answer": {"type": "classification"}},
    }
    found = validate_spec(spec, Job, "x.yaml")
    assert {name: options.encoder.type for name, options in found.inputs.items()} == {
        "photo": "conv",
        "sound": "conv",
        "clip": "frames",
        "review": "conv",
        "sensor": "conv",
        "person": "mlp",
        "clicks": "embedding",
    }
    assert found.inputs["clip"].encoder.inner_encoders["encoder"].type == "conv"
    assert found.fusion.type == "concat"
    stored = json.loads(found.model_dump_json())
    assert validate_spec(stored, Job, "stored") == found
