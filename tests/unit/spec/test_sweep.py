"""Sweeps: search spaces, and validation of every combination."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs

from rayfuse.errors import SpecError
from rayfuse.spec.search_space import (
    MAX_CHECKED_COMBINATIONS,
    SearchSpace,
    format_value,
    format_values,
    load_sweep,
    num_trials,
)

CONCAT, TRANSFORMER = {"type": "concat", "hidden": 16}, {"type": "transformer", "layers": 1}

Load = Callable[..., SearchSpace]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Return a loader of a sweep over the tiny job; keywords change it, None removes a key."""
    (tmp_path / "job.yaml").write_text(json.dumps(tiny_jobs.job_content(tmp_path)))

    def load(overrides: dict[str, Any] | None = None, **changes: Any) -> SearchSpace:
        content = {
            "kind": "sweep",
            "name": "tiny-sweep",
            "job": "job.yaml",
            "metric": "answer/accuracy",
            "space": {"train.optimizer.lr": {"loguniform": [1e-3, 1e-1]}},
            **changes,
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return load_sweep(path, overrides, {})

    return load


def error_of(load: Load, **changes: Any) -> str:
    with pytest.raises(SpecError) as caught:
        load(**changes)
    return str(caught.value)


def test_values_and_blocks_can_be_searched(load: Load) -> None:
    space = load(
        space={"fusion": {"choice": [CONCAT, TRANSFORMER]}, "train.optimizer.lr": {"choice": [0.1, 0.2]}}
    )
    jobs = [space.trial_job(values) for values in space.combinations()]
    assert [(job.fusion.type, job.train.optimizer.lr) for job in jobs] == [
        ("concat", 0.1),
        ("concat", 0.2),
        ("transformer", 0.1),
        ("transformer", 0.2),
    ]


def test_a_trial_sees_no_test_rows_and_the_winner_does(load: Load) -> None:
    space = load(trial_overrides={"train.epochs": 1})
    values = {"train.optimizer.lr": 0.05}
    trial, winner = space.trial_job(values), space.build_job(values)
    assert (trial.data.test, trial.train.epochs) == (None, 1)
    assert winner.data.test is not None
    assert winner.train.epochs == 2
    assert trial.train.optimizer.lr == winner.train.optimizer.lr == 0.05


def test_a_fraction_of_test_rows_is_held_out_from_trials(load: Load, tmp_path: Path) -> None:
    content = tiny_jobs.job_content(tmp_path)
    content["data"]["test"] = {"fraction": 0.2}
    (tmp_path / "job.yaml").write_text(json.dumps(content))
    assert load().trial_job({"train.optimizer.lr": 0.05}).data.fractions == {"validation": 0.25, "test": 0.2}


def test_a_trial_is_trained_on_one_fold_and_the_winner_on_all(load: Load, tmp_path: Path) -> None:
    content = tiny_jobs.job_content(tmp_path)
    content["data"]["folds"] = 4
    (tmp_path / "job.yaml").write_text(json.dumps(content))
    assert (
        "job: data.folds: a trial is trained on one split, not on 4; add `trial_overrides: {data.fold: 1}`"
        in error_of(load)
    )
    space = load(trial_overrides={"data.fold": 1})
    assert space.trial_job({}).data.fractions == {"validation": 0.25, "test": 0.25}
    assert space.build_job({}).data.fold is None


def test_trials_are_judged_by_the_metric_of_the_sweep(load: Load) -> None:
    job = load(metric="answer/f1_macro").trial_job({})
    assert job.selection_metric == "answer/f1_macro"
    assert job.train.early_stopping is not None
    assert job.train.early_stopping.patience == 3


def test_a_parameter_may_depend_on_another(load: Load) -> None:
    space = load(
        space={
            "fusion.heads": {"choice": [1, 2], "when": {"fusion.type": "transformer"}},
            "fusion": {"choice": [CONCAT, TRANSFORMER]},
        }
    )
    assert [list(values) for values in space.combinations()] == [
        ["fusion"],
        ["fusion", "fusion.heads"],
        ["fusion", "fusion.heads"],
    ]


def test_conditions_on_defaults_and_on_several_values(load: Load) -> None:
    rate = {"uniform": [0.1, 0.2]}
    space = load(
        space={
            "train.optimizer.weight_decay": {**rate, "when": {"align.type": "linear"}},
            "train.modality_dropout": {**rate, "when": {"train.schedule.type": ["cosine", "constant"]}},
        }
    )
    assert all(len(values) == 2 for values in space.combinations())


def test_values_inside_a_choice_do_not_change_it(load: Load) -> None:
    space = load(space={"fusion": {"choice": [TRANSFORMER]}, "fusion.heads": {"choice": [1, 2]}})
    heads = [space.trial_job(values).fusion.heads for values in space.combinations()]  # type: ignore[union-attr]
    assert heads == [1, 2]
    assert space.sweep.space["fusion"].choice == [TRANSFORMER]


def test_a_grid_has_each_cell_once(load: Load) -> None:
    space = load(
        search={"type": "grid", "repeats": 2},
        space={
            "fusion": {"grid": [CONCAT, TRANSFORMER]},
            "fusion.heads": {"grid": [1, 2], "when": {"fusion.type": "transformer"}},
            "train.optimizer.lr": {"uniform": [0.1, 0.2]},
        },
    )
    assert len(space.grid()) == 3
    assert num_trials(space) == 6


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.optimizr.lr": {"choice": [1]}}, "space.train.optimizr.lr: unknown key; did you mean optimizer?"),
        ({"fusion.heads": {"choice": [2]}}, "space.fusion.heads: unknown key"),
        ({"tasks.answer": {"choice": [{"type": "median"}]}}, "space.tasks.answer: type `median` is not implemented yet"),
        ({"fusion": {"choice": [{"type": "transfrmer"}]}}, "space.fusion: unknown type `transfrmer`; did you mean"),
        ({"fusion": {"choice": [{**TRANSFORMER, "heads": 3}]}}, "space.fusion.heads: 3 does not divide align.dim 16"),
        ({"align.dim": {"int": [4, 16]}}, "space.align.dim: must be at least 8, not 4"),
        ({"train.batch_size.x": {"choice": [1]}}, "space.train.batch_size.x: `train.batch_size` is a value"),
        ({"train.epochs": {"uniform": [1, 2.5]}}, "space.train.epochs: must be an integer; write `int: [LOWEST, HIGHEST]`"),
        ({"train.epochs": {"loguniform": [1, 8]}}, "space.train.epochs: must be an integer; write `int: [LOWEST, HIGHEST]`"),
        ({"train.epochs": {"choice": [1, 1.5]}}, "space.train.epochs: must be an integer, not 1.5"),
        ({"data.train": {"choice": ["a"]}}, "space.data.train: cannot be searched, as trials are compared on the same rows"),
        ({"output.registered_model": {"choice": ["a"]}}, "space.output.registered_model: is the same for all trials"),
        ({"train..lr": {"choice": [1]}}, "space.train..lr: not a path"),
        ({"train.max_grad_norm": {"choice": []}}, "space.train.max_grad_norm.choice: must have at least 1 item"),
        ({"train.max_grad_norm": {}}, "space.train.max_grad_norm.choice: write exactly one of choice, grid, uniform, loguniform, int"),
        ({"train.max_grad_norm": {"choice": [1], "uniform": [1, 2]}}, "found: choice, uniform"),
        ({"train.max_grad_norm": {"uniform": [2, 1]}}, "space.train.max_grad_norm.uniform: [2, 1] is not a range"),
        ({"train.max_grad_norm": {"loguniform": [0, 1]}}, "space.train.max_grad_norm.loguniform.0: must be greater than 0"),
        ({"train.max_grad_norm": {"grid": [1]}}, "space.train.max_grad_norm.grid: not supported by search random; use `choice`"),
        ({"train.max_grad_norm": {"normal": [1, 2]}}, "space.train.max_grad_norm.normal: unknown key"),
        ({"train.max_grad_norm": 1}, "space.train.max_grad_norm: must be a mapping, not 1"),
        ({}, "space: must have at least 1 item"),
        (
            {"train.max_grad_norm": {"choice": [1], "when": {"fusion.type": "concta"}}},
            "space.train.max_grad_norm.when: never true",
        ),
    ],
)  # fmt: skip
def test_errors_in_the_space_have_their_path(load: Load, space: dict[str, Any], message: str) -> None:
    error = error_of(load, space=space)
    assert f"sweep.yaml: {message}" in error or (message.startswith("found:") and message in error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"metric": "answer/accuracy_"},
            "metric: no task reports `answer/accuracy_`; did you mean answer/accuracy?",
        ),
        ({"mode": "min"}, "mode: higher answer/accuracy is better; write max"),
        ({"scheduler": {"type": "pbt"}}, "scheduler: type `pbt` is not implemented yet; one of: none, asha"),
        ({"search": {"type": "bayes"}}, "search: unknown type `bayes`"),
        ({"search": {"type": "grid"}}, "search.type: grid needs a parameter with `grid`"),
        (
            {"trial_overrides": {"train.epochs": 0}},
            "trial_overrides.train.epochs: must be at least 1, not 0",
        ),
        (
            {"trial_overrides": {"train.optimizer": {}}},
            "trial_overrides.train.optimizer: `train.optimizer.lr` is also in `space`",
        ),
        ({"trial_overrides": {"name": "x"}}, "trial_overrides.name: is the same for all trials"),
        ({"concurrency": 0}, "concurrency: must be at least 1"),
        ({"time_budget": "soon"}, "time_budget: 'soon' is not a duration"),
        ({"space": None}, "space: missing"),
        ({"metrics": 1}, "metrics: unknown key; did you mean metric?"),
    ],
)
def test_errors_in_the_sweep_have_their_path(load: Load, changes: dict[str, Any], message: str) -> None:
    assert f"sweep.yaml: {message}" in error_of(load, **changes)


def test_the_values_of_a_wrong_combination_are_named(load: Load) -> None:
    space = {"align.dim": {"choice": [16, 20]}, "fusion": {"choice": [{**TRANSFORMER, "heads": 8}]}}
    assert error_of(load, space=space).endswith("(with align.dim=20, fusion={transformer layers=1 heads=8})")


def test_errors_in_the_job_have_the_path_of_its_file(load: Load, tmp_path: Path) -> None:
    content = tiny_jobs.job_content(tmp_path)
    content["train"]["epochs"] = 0
    (tmp_path / "job.yaml").write_text(json.dumps(content))
    assert "job.yaml: train.epochs: must be at least 1" in error_of(load)
    assert "absent.yaml: no such file" in error_of(load, job="absent.yaml")


def test_overrides_reach_a_parameter_by_its_path(load: Load) -> None:
    overrides = {"space.train.optimizer.lr.loguniform": [1.0e-4, 1.0e-3], "search.trials": 3}
    space = load(overrides, search={"type": "random"})
    assert space.sweep.space["train.optimizer.lr"].loguniform == (1e-4, 1e-3)
    assert num_trials(space) == 3


def test_every_pair_of_values_of_a_large_space_is_validated(load: Load) -> None:
    wide = {"choice": list(range(1, 11))}
    space = dict.fromkeys(
        ("train.seed", "train.epochs", "train.max_grad_norm", "train.optimizer.weight_decay"), wide
    )
    large = {**space, "align.dim": {"choice": [8, 16]}, "fusion.layers": {"int": [1, 2]}}
    assert load(space=large).max_combinations() > MAX_CHECKED_COMBINATIONS
    wrong = {**large, "fusion": {"choice": [{"type": "concat"}, {**TRANSFORMER, "heads": 16}]}}
    assert "16 does not divide align.dim 8" in error_of(load, space=wrong)


def test_values_in_a_line() -> None:
    assert (
        format_values({"a": 0.123456, "b": {"type": "concat"}, "c": [1, 2], "d": None})
        == "a=0.1235, b=concat, c=[1, 2], d=null"
    )
    assert format_value({"type": "transformer", "heads": 2}) == "{transformer heads=2}"
