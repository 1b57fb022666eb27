import json
from pathlib import Path

import tiny_generation
import tiny_jobs

from rayfuse.registry.run_params import mlflow_names, run_params


def test_parameters_are_the_options_in_use(tmp_path: Path) -> None:
    params = run_params(tiny_jobs.tiny_job(tmp_path, **{"compute.workers": 2, "inputs.text.optional": False}))
    assert params["inputs.image.encoder.type"] == "conv"
    assert params["train.optimizer.weight_decay"] == "0.01", "a default of a chosen part"
    assert params["fusion.dropout"] == "0.0", "set to 0"
    assert params["compute.workers"] == "2"
    assert params["inputs.text.optional"] == "false"
    unused = {"kind", "name", "tasks.answer.focal_gamma", "align.loss", "compute.decode", "train.model_soup"}
    assert not unused & params.keys()
    assert not [name for name in params if name.startswith(("output.tensorboard", "train.distillation"))]


def test_long_values_are_left_out(tmp_path: Path) -> None:
    classes = [f"class {number}" for number in range(1000)]
    params = run_params(tiny_jobs.tiny_job(tmp_path, **{"tasks.answer.classes": classes}))
    assert "tasks.answer.classes" not in params
    assert (
        run_params(tiny_jobs.tiny_job(tmp_path, **{"tasks.answer.classes": ["a", "é"]}))[
            "tasks.answer.classes"
        ]
        == '["a", "é"]'
    )


def test_weights_of_many_classes_are_one_value(tmp_path: Path) -> None:
    for count, logged in ((100, 100), (101, 0)):
        weights = {f"class {number}": 2.0 for number in range(count)}
        params = run_params(tiny_jobs.tiny_job(tmp_path, **{"tasks.answer.class_weights": weights}))
        assert sum(name.startswith("tasks.answer.class_weights.") for name in params) == logged


def test_a_schema_is_one_value(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}}
    job = tiny_generation.generation_job(tmp_path, task={"json_schema": schema})
    params = run_params(job)
    assert json.loads(params["tasks.answer.json_schema"]) == schema
    assert not [name for name in params if name.startswith("tasks.answer.json_schema.")]
    long = {"description": "a" * 500}
    assert "tasks.answer.json_schema" not in run_params(job.override(**{"tasks.answer.json_schema": long}))


def test_names_are_valid_and_differ() -> None:
    names = ["Age (years)", "Age [years]", "a/../b", "h" * 300, "h" * 301]
    found = mlflow_names(names)
    assert list(found) == names
    assert found["Age (years)"] == "Age _years_"
    assert found["a/../b"] == "a/__/b"
    assert len(set(found.values())) == len(names)
    assert max(map(len, found.values())) == 250
