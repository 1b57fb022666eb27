"""Descriptions on the pages of MLflow."""

from pathlib import Path

import tiny_jobs
from tiny_sweeps import make_space

from rayfuse.registry.model_card import MAX_LENGTH, TrainedModel, describe


def test_a_model_card(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(
        tmp_path, **{"tasks.answer.classes": ["red", "a|b"], "output.registered_model": "colors"}
    )
    by_inputs = {"image+text": {"loss": 0.25, "answer/f1_macro": 0.5}, "text": {"loss": 1.0}}
    text = TrainedModel(job, {"train": 1200, "test": 24}, "test", by_inputs, "best epoch: 3 of 5").card(7)
    lines = text.replace("&nbsp;", "").splitlines()
    assert lines[0].startswith("Predicts `answer` from `image`, `text`; ")
    assert "| `answer` | classification | column label, 2 classes: red, a\\|b |" in lines
    assert "| `image` | image | no | conv | `image` |" in lines
    assert "| train | 1,200 |" in lines
    assert "## Metrics on the test rows, by inputs" in lines
    assert "| image + text | 0.2500 |" in lines, "averages over classes are left out"
    assert "Best epoch: 3 of 5." in lines
    assert 'model = rayfuse.load_model("models:/colors/7")' in lines
    code = next(line for line in lines if line.startswith("model.predict("))
    assert "'text': " in code
    assert "'image': " in code
    assert "load_model" not in TrainedModel(job).card()


def test_a_model_card_fits_into_a_description(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path)
    columns = {f"a very long name of a column, number {number}": "number" for number in range(500)}
    person = {"type": "tabular", "columns": columns, "encoder": {"type": "mlp"}}
    inputs = {f"person{number}": person for number in range(20)}
    job = job.override(inputs={**inputs, "text": {"type": "text"}}, fusion={"type": "concat"})
    names = [f"person{number}" for number in range(20)]
    by_inputs = {"+".join(names[:count]): {"loss": 1.0} for count in range(20, 0, -1)}
    text = TrainedModel(job, {"train": 3}, "test", by_inputs).card(1)
    assert len(text) <= MAX_LENGTH
    assert 'rayfuse.load_model("models:/tiny/1")' in text


def test_a_sweep_is_described(tmp_path: Path) -> None:
    sweep = make_space(tmp_path, {"type": "random", "trials": 2}).sweep
    text = describe(sweep).replace("&nbsp;", "")
    assert text.startswith(f"Hyperparameter search for the best `{sweep.metric}` of ")
    assert all(f"| `{path}` | " in text for path in sweep.space)
