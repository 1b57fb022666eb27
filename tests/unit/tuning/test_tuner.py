from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_jobs import write_rows
from tiny_sweeps import CONCAT, make_space

from rayfuse.data.dataset import load_dataset
from rayfuse.spec.job import Job
from rayfuse.training.runs import RunFolder, RunStatus
from rayfuse.tuning.scheduler import build_scheduler
from rayfuse.tuning.trial_config import with_fitted_parts
from rayfuse.tuning.trial_runner import EPOCH, VALUE, validation_metrics
from rayfuse.tuning.trials import Trial, Trials

ASHA = {"type": "asha", "grace_period": 1, "reduction_factor": 2}


def trials_with(folder: Path, *ended: Trial) -> Trials:
    trials = Trials(RunFolder(str(folder / "sweep"), RunStatus("sweep", "")))
    for trial in ended:
        trials.run_folder(trial).create()
        trials.save(trial)
    return trials


@pytest.mark.parametrize(("value", "decision"), [(0.1, "STOP"), (0.9, "CONTINUE")])
def test_asha_compares_with_trials_of_an_earlier_driver(tmp_path: Path, value: float, decision: str) -> None:
    space = make_space(
        tmp_path, {"type": "random", "trials": 4}, scheduler=ASHA, trial_overrides={"train.epochs": 4}
    )
    ended = Trial(1, {"fusion": CONCAT}, "finished", history=[{"answer/accuracy": 0.5}] * 4)
    scheduler: Any = build_scheduler(space, trials_with(tmp_path, ended))
    assert scheduler.set_search_properties("best/answer/accuracy", "max")
    trial = SimpleNamespace(trial_id="new")
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, {"state": "running"}) == "CONTINUE"
    assert scheduler.on_trial_result(None, trial, {EPOCH: 1, VALUE: value}) == decision


def test_without_asha_there_is_no_scheduler(tmp_path: Path) -> None:
    space = make_space(tmp_path, {"type": "random", "trials": 4}, scheduler={"type": "none"})
    assert build_scheduler(space, trials_with(tmp_path)) is None


def test_validation_metrics_have_no_prefix() -> None:
    record: dict[str, Any] = {"epoch": 1, "metrics": {"validation/loss": 0.5, "train/loss": 0.4}}
    assert validation_metrics(record) == {"loss": 0.5}


def test_trials_have_the_scales_and_vocabularies_of_the_shared_rows(tmp_path: Path) -> None:
    rows = [{"age": 20 + i, "city": "AB"[i % 2], "label": i % 2} for i in range(20)]
    job = Job(
        name="facts",
        data={"train": str(write_rows(tmp_path / "rows.jsonl", rows))},
        inputs={"facts": {"type": "tabular", "columns": ["age", "city"], "encoder": {"type": "mlp"}}},
        fusion={"type": "concat"},
        tasks={"label": {"type": "classification"}},
        output={"storage": str(tmp_path / "runs")},
    )
    fitted, _ = load_dataset(job)
    trial = job.override(**{"inputs.facts.encoder.layers": 3, "tasks.label.weight": 2, "train.epochs": 1})
    found = with_fitted_parts(trial, fitted)
    facts, label = found.inputs["facts"], found.tasks["label"]
    assert {name: column.type for name, column in facts.columns.items()} == {
        "age": "number",
        "city": "category",
    }
    assert facts.columns == fitted.inputs["facts"].columns
    assert label.classes == fitted.tasks["label"].classes == [0, 1]
    assert (facts.encoder.layers, label.weight, found.train.epochs) == (3, 2, 1)


def test_trials_have_the_vocabularies_of_encoders_of_the_shared_rows(tmp_path: Path) -> None:
    rows = [{"text": f"word{i % 3} and", "label": i % 2} for i in range(20)]
    job = Job(
        name="texts",
        data={"train": str(write_rows(tmp_path / "rows.jsonl", rows))},
        inputs={"text": {"type": "text", "encoder": {"type": "ngrams"}}},
        fusion={"type": "concat"},
        tasks={"label": {"type": "classification"}},
        output={"storage": str(tmp_path / "runs")},
    )
    fitted, _ = load_dataset(job)
    wanted, options = fitted.inputs["text"].encoder, job.inputs["text"].encoder
    found = with_fitted_parts(job.override(**{"inputs.text.encoder.hidden_size": 8}), fitted)
    encoder = found.inputs["text"].encoder
    assert encoder.hidden_size == 8
    assert encoder.vocabulary == wanted.vocabulary
    assert set(encoder.vocabulary) == {
        "and",
        "word0",
        "word1",
        "word2",
        "word0 and",
        "word1 and",
        "word2 and",
    }
    assert encoder.idf == wanted.idf
    same = job.override(**{"inputs.text.encoder.hidden_size": 8}).inputs["text"].encoder
    other = job.override(**{"inputs.text.encoder.words": 1}).inputs["text"].encoder
    assert (
        same.fit_options == options.fit_options != other.fit_options
    )  # a trial with others reads the rows itself
