"""Sweeps: what may be searched, and every combination checked before anything starts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs

from rayfuse.errors import SpecError
from rayfuse.spec.space import MOST_CHECKED, Space, draws, load_sweep, show, shown

CONCAT, TRANSFORMER = {"type": "concat", "hidden": 16}, {"type": "transformer", "layers": 1}

Load = Callable[..., Space]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a sweep over the tiny job; keywords change it, None takes a key out."""
    (tmp_path / "job.yaml").write_text(json.dumps(tiny_jobs.job_content(tmp_path)))

    def load(overrides: list[str] | None = None, **changes: Any) -> Space:
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
        return load_sweep(path, overrides or [], {})

    return load


def refused(load: Load, **changes: Any) -> str:
    with pytest.raises(SpecError) as caught:
        load(**changes)
    return str(caught.value)


def test_a_value_and_a_whole_block_can_be_searched(load: Load) -> None:
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
    space = load(trial={"train.epochs": 1})
    values = {"train.optimizer.lr": 0.05}
    trial, winner = space.trial_job(values), space.winner(values)
    assert (trial.data.test, trial.train.epochs) == (None, 1)
    assert winner.data.test is not None
    assert winner.train.epochs == 2
    assert trial.train.optimizer.lr == winner.train.optimizer.lr == 0.05


def test_trials_are_judged_by_the_metric_of_the_sweep(load: Load) -> None:
    job = load(metric="answer/f1_macro").trial_job({})
    assert job.chosen_by == "answer/f1_macro"
    assert job.train.early_stopping is not None
    assert job.train.early_stopping.patience == 3


def test_a_parameter_depends_on_what_another_was_given(load: Load) -> None:
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


def test_a_condition_may_ask_for_a_default_and_for_one_of_several(load: Load) -> None:
    rate = {"uniform": [0.1, 0.2]}
    space = load(
        space={
            "train.optimizer.weight_decay": {**rate, "when": {"align.type": "linear"}},
            "train.input_dropout": {**rate, "when": {"train.schedule.type": ["cosine", "constant"]}},
        }
    )
    assert all(len(values) == 2 for values in space.combinations())


def test_choices_are_not_changed_by_what_is_put_into_them(load: Load) -> None:
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
    assert draws(space) == 6


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.optimzer.lr": {"choice": [1]}}, "space.train.optimzer.lr: unknown key; did you mean optimizer?"),
        ({"fusion.heads": {"choice": [2]}}, "space.fusion.heads: unknown key"),
        ({"tasks.answer": {"choice": [{"type": "generation"}]}}, "space.tasks.answer: type `generation` is not built yet"),
        ({"fusion": {"choice": [{"type": "transfromer"}]}}, "space.fusion: unknown type `transfromer`; did you mean"),
        ({"fusion": {"choice": [{**TRANSFORMER, "heads": 3}]}}, "space.fusion.heads: 3 heads do not divide align.dim 16"),
        ({"align.dim": {"int": [4, 16]}}, "space.align.dim: should be greater than or equal to 8, not 4"),
        ({"train.batch_size.x": {"choice": [1]}}, "space.train.batch_size.x: `train.batch_size` is a value"),
        ({"train.epochs": {"uniform": [1, 2.5]}}, "space.train.epochs: "),
        ({"data.train": {"choice": ["a"]}}, "space.data.train: cannot be searched: trials are compared on the same rows"),
        ({"output.model": {"choice": ["a"]}}, "space.output.model: says where results go"),
        ({"train..lr": {"choice": [1]}}, "space.train..lr: not a path"),
        ({"train.clip": {"choice": []}}, "space.train.clip.choice: should have at least 1 item"),
        ({"train.clip": {}}, "space.train.clip.choice: write exactly one of choice, grid, uniform, loguniform, int"),
        ({"train.clip": {"choice": [1], "uniform": [1, 2]}}, "given: choice, uniform"),
        ({"train.clip": {"uniform": [2, 1]}}, "space.train.clip.uniform: a range rises"),
        ({"train.clip": {"loguniform": [0, 1]}}, "space.train.clip.loguniform.0: should be greater than 0"),
        ({"train.clip": {"grid": [1]}}, "space.train.clip.grid: search random draws its values; write `choice`"),
        ({"train.clip": {"normal": [1, 2]}}, "space.train.clip.normal: unknown key"),
        ({"train.clip": 1}, "space.train.clip: a mapping belongs here, not 1"),
        ({}, "space: should have at least 1 item"),
        (
            {"train.clip": {"choice": [1], "when": {"fusion.type": "concta"}}},
            "space.train.clip.when: never holds",
        ),
    ],
)  # fmt: skip
def test_a_wrong_space_says_where(load: Load, space: dict[str, Any], message: str) -> None:
    error = refused(load, space=space)
    assert f"sweep.yaml: {message}" in error or (message.startswith("given:") and message in error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"metric": "answer/accuracy_"},
            "metric: no task reports `answer/accuracy_`; one of: loss, answer/loss",
        ),
        ({"mode": "min"}, "mode: more answer/accuracy is better; write max"),
        ({"scheduler": {"type": "pbt"}}, "scheduler: type `pbt` is not built yet; one of: none, asha"),
        ({"search": {"type": "bayes"}}, "search: unknown type `bayes`"),
        ({"search": {"type": "grid"}}, "search.type: a grid search needs a parameter with `grid`"),
        ({"trial": {"train.epochs": 0}}, "trial.train.epochs: should be greater than or equal to 1, not 0"),
        ({"trial": {"train.optimizer": {}}}, "trial.train.optimizer: `train.optimizer.lr` is searched"),
        ({"trial": {"name": "x"}}, "trial.name: says where results go"),
        ({"concurrency": 0}, "concurrency: should be greater than or equal to 1"),
        ({"budget": "soon"}, "budget: 'soon' is not a duration"),
        ({"space": None}, "space: missing"),
        ({"metrics": 1}, "metrics: unknown key; did you mean metric?"),
    ],
)
def test_a_wrong_sweep_says_where(load: Load, changes: dict[str, Any], message: str) -> None:
    assert f"sweep.yaml: {message}" in refused(load, **changes)


def test_the_values_of_a_wrong_combination_are_named(load: Load) -> None:
    space = {"align.dim": {"choice": [16, 20]}, "fusion": {"choice": [{**TRANSFORMER, "heads": 8}]}}
    assert refused(load, space=space).endswith("(with align.dim=20, fusion={transformer layers=1 heads=8})")


def test_a_job_that_is_wrong_itself_is_named_by_its_own_file(load: Load, tmp_path: Path) -> None:
    content = tiny_jobs.job_content(tmp_path)
    content["train"]["epochs"] = 0
    (tmp_path / "job.yaml").write_text(json.dumps(content))
    assert "job.yaml: train.epochs: should be greater" in refused(load)
    assert "absent.yaml: no such file" in refused(load, job="absent.yaml")


def test_overrides_reach_a_parameter_by_its_path(load: Load) -> None:
    overrides = ["space.train.optimizer.lr.loguniform=[1.0e-4, 1.0e-3]", "search.trials=3"]
    space = load(overrides, search={"type": "random"})
    assert space.sweep.space["train.optimizer.lr"].loguniform == (1e-4, 1e-3)
    assert draws(space) == 3


def test_of_a_huge_space_every_pair_is_checked(load: Load) -> None:
    wide = {"choice": list(range(1, 11))}
    space = dict.fromkeys(("train.seed", "train.epochs", "train.clip", "train.optimizer.weight_decay"), wide)
    large = {**space, "align.dim": {"choice": [8, 16]}, "fusion.layers": {"int": [1, 2]}}
    assert load(space=large).size() > MOST_CHECKED
    wrong = {**large, "fusion": {"choice": [{"type": "concat"}, {**TRANSFORMER, "heads": 16}]}}
    assert "16 heads do not divide align.dim 8" in refused(load, space=wrong)


def test_values_in_a_line() -> None:
    assert (
        shown({"a": 0.123456, "b": {"type": "concat"}, "c": [1, 2], "d": None})
        == "a=0.1235, b=concat, c=[1, 2], d=null"
    )
    assert show({"type": "transformer", "heads": 2}) == "{transformer heads=2}"
