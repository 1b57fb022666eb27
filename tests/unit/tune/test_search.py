"""The ways to search, without Ray: which values trials get, and that a sweep goes on as it began."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_sweeps import CONCAT, TRANSFORMER, make_space

from rayfuse.train.runs import RunFolder, RunStatus
from rayfuse.tune.search import Suggestions, strategy
from rayfuse.tune.trials import Trial, Trials, ranked


def ended(number: int, values: dict[str, Any], *reached: float, state: Any = "finished") -> Trial:
    return Trial(number, values, state, history=[{"answer/accuracy": value} for value in reached])


@pytest.mark.parametrize("search", [{"type": "random", "trials": 50}, {"type": "optuna", "trials": 50}])
def test_draws_stay_in_the_space(tmp_path: Path, search: dict[str, Any]) -> None:
    ways = strategy(make_space(tmp_path, search))
    drawn = [ways.ask(number) for number in range(1, 51)]
    assert {values["fusion"]["type"] for values in drawn} == {"concat", "transformer"}
    for values in drawn:
        assert ("fusion.heads" in values) == (values["fusion"]["type"] == "transformer")
        assert 1e-3 <= values["train.optimizer.lr"] <= 1e-1
        assert 0 <= values["train.input_dropout"] <= 0.5
        assert values["align.dim"] in (8, 16)
    # Half of the draws of a logarithmic range lie below its geometric mean.
    assert 10 <= sum(values["train.optimizer.lr"] < 1e-2 for values in drawn) <= 40


def test_random_draws_depend_on_seed_and_number_alone(tmp_path: Path) -> None:
    first, again = (strategy(make_space(tmp_path, {"type": "random", "seed": 1})) for _ in range(2))
    other = strategy(make_space(tmp_path, {"type": "random", "seed": 2}))
    in_order = [first.ask(number) for number in (1, 2, 3)]
    assert [again.ask(number) for number in (3, 1, 2)] == [in_order[2], in_order[0], in_order[1]]
    assert other.ask(1) != in_order[0]


def test_a_grid_is_walked_cell_by_cell(tmp_path: Path) -> None:
    space = {
        "fusion": {"grid": [CONCAT, TRANSFORMER]},
        "fusion.heads": {"grid": [1, 2], "when": {"fusion.type": "transformer"}},
        "train.clip": {"uniform": [1, 2]},
    }
    ways = strategy(make_space(tmp_path, {"type": "grid", "repeats": 2}, space))
    assert ways.trials == 6
    drawn = [ways.ask(number) for number in range(1, 7)]
    cells = [{key: value for key, value in values.items() if key != "train.clip"} for values in drawn]
    assert cells[:3] == cells[3:]
    assert len({json.dumps(cell) for cell in cells}) == 3
    assert len({values["train.clip"] for values in drawn}) == 6


def test_optuna_goes_where_results_were_good(tmp_path: Path) -> None:
    """What earlier drivers found counts: after many trials that were good near 0.003, it draws near there."""
    space = {"train.optimizer.lr": {"loguniform": [1e-4, 1.0]}}
    ways = strategy(make_space(tmp_path, {"type": "optuna", "trials": 60, "startup": 1, "seed": 3}, space))
    for number in range(1, 31):
        rate = 10 ** (-4 + 4 * (number - 1) / 29)
        near = abs(rate / 0.003 - 1) < 0.9
        ways.tell(ended(number, {"train.optimizer.lr": rate}, 0.9 if near else 0.1))
    drawn = [ways.ask(number)["train.optimizer.lr"] for number in range(31, 51)]
    assert sum(0.0003 < rate < 0.03 for rate in drawn) >= 14


def test_optuna_is_told_of_every_kind_of_end(tmp_path: Path) -> None:
    ways: Any = strategy(make_space(tmp_path, {"type": "optuna", "trials": 5}))
    values = [ways.ask(number) for number in (1, 2, 3)]
    ways.tell(ended(1, values[0], 0.1, 0.7, 0.6))
    ways.tell(ended(2, values[1], 0.2, state="stopped"))
    ways.tell(ended(3, values[2], state="failed"))
    ways.tell(ended(4, {**values[0], "train.optimizer.lr": 0.05}, 0.3))  # of an earlier driver
    told = ways._study.trials
    assert [trial.state.name for trial in told] == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    assert told[0].value == 0.7
    assert told[1].intermediate_values == {1: 0.2}
    assert told[3].params["train.optimizer.lr"] == 0.05


def test_suggestions_begin_with_what_an_earlier_driver_left(tmp_path: Path) -> None:
    space = make_space(tmp_path, {"type": "random", "trials": 4})
    trials = Trials(RunFolder(str(tmp_path / "sweep"), RunStatus("sweep", "")))
    ways = strategy(space)
    for number, state in ((1, "finished"), (2, "running")):
        trial = Trial(number, ways.ask(number), state)  # type: ignore[arg-type]
        trials.run(trial).make()
        trials.save(trial)

    again = Trials(trials.folder)
    suggestions = Suggestions(
        ways, again, lambda trial: {"number": trial.number, **trial.values}, "value", "max"
    )
    assert suggestions.count == 3
    suggested = [suggestions.suggest("x") for _ in range(4)]
    assert [config["number"] for config in suggested[:3]] == [2, 3, 4]
    assert suggested[3] == Suggestions.FINISHED
    assert suggested[0] == {"number": 2, **ways.ask(2)}


def test_the_best_come_first_and_those_without_a_value_last() -> None:
    trials = [ended(1, {}, 0.2, 0.5), ended(2, {}), ended(3, {}, 0.9, 0.1), ended(4, {}, 0.5)]
    assert [t.number for t in ranked(trials, "answer/accuracy", "max")] == [3, 1, 4, 2]
    assert [t.number for t in ranked(trials, "answer/accuracy", "min")] == [3, 1, 4, 2]
    nothing = Trial(5, {}, history=[{"answer/accuracy": None}])  # type: ignore[dict-item]
    assert nothing.best("answer/accuracy", "max") is None
