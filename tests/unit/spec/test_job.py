"""Properties of a job."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

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
