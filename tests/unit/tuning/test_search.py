"""Search strategies without Ray: the values of trials, and resumed sweeps."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_sweeps import CONCAT, TRANSFORMER, make_space

from rayfuse.training.runs import RunFolder, RunStatus
from rayfuse.tuning.search import ResumableSearcher, create_strategy
from rayfuse.tuning.trials import Trial, Trials


def ended(number: int, values: dict[str, Any], *reached: float, state: Any = "finished") -> Trial:
    return Trial(number, values, state, history=[{"answer/accuracy": value} for value in reached])


@pytest.mark.parametrize("search", [{"type": "random", "trials": 50}, {"type": "optuna", "trials": 50}])
def test_suggestions_stay_in_the_space(tmp_path: Path, search: dict[str, Any]) -> None:
    strategy = create_strategy(make_space(tmp_path, search))
    suggested_values = [strategy.suggest(number) for number in range(1, 51)]
    assert {values["fusion"]["type"] for values in suggested_values} == {"concat", "transformer"}
    for values in suggested_values:
        assert ("fusion.heads" in values) == (values["fusion"]["type"] == "transformer")
        assert 1e-3 <= values["train.optimizer.lr"] <= 1e-1
        assert 0 <= values["train.modality_dropout"] <= 0.5
        assert values["align.dim"] in (8, 16)
    # Half of the samples of a logarithmic range lie below its geometric mean.
    assert 10 <= sum(values["train.optimizer.lr"] < 1e-2 for values in suggested_values) <= 40


def test_random_values_depend_on_seed_and_number_alone(tmp_path: Path) -> None:
    first, again = (create_strategy(make_space(tmp_path, {"type": "random", "seed": 1})) for _ in range(2))
    other = create_strategy(make_space(tmp_path, {"type": "random", "seed": 2}))
    in_order = [first.suggest(number) for number in (1, 2, 3)]
    assert [again.suggest(number) for number in (3, 1, 2)] == [in_order[2], in_order[0], in_order[1]]
    assert other.suggest(1) != in_order[0]


def test_grid_search_visits_every_cell(tmp_path: Path) -> None:
    space = {
        "fusion": {"grid": [CONCAT, TRANSFORMER]},
        "fusion.heads": {"grid": [1, 2], "when": {"fusion.type": "transformer"}},
        "train.max_grad_norm": {"uniform": [1, 2]},
    }
    strategy = create_strategy(make_space(tmp_path, {"type": "grid", "repeats": 2}, space))
    assert strategy.num_trials == 6
    suggested_values = [strategy.suggest(number) for number in range(1, 7)]
    cells = [
        {key: value for key, value in values.items() if key != "train.max_grad_norm"}
        for values in suggested_values
    ]
    assert cells[:3] == cells[3:]
    assert len({json.dumps(cell) for cell in cells}) == 3
    assert len({values["train.max_grad_norm"] for values in suggested_values}) == 6


def test_optuna_samples_near_good_results(tmp_path: Path) -> None:
    """Results of earlier drivers count: after many good trials near 0.003, values are sampled near it."""
    space = {"train.optimizer.lr": {"loguniform": [1e-4, 1.0]}}
    strategy = create_strategy(
        make_space(tmp_path, {"type": "optuna", "trials": 60, "n_startup_trials": 1, "seed": 3}, space)
    )
    for number in range(1, 31):
        rate = 10 ** (-4 + 4 * (number - 1) / 29)
        near = abs(rate / 0.003 - 1) < 0.9
        strategy.observe(ended(number, {"train.optimizer.lr": rate}, 0.9 if near else 0.1))
    suggested_values = [strategy.suggest(number)["train.optimizer.lr"] for number in range(31, 51)]
    assert sum(0.0003 < rate < 0.03 for rate in suggested_values) >= 14


def test_optuna_observes_every_final_state(tmp_path: Path) -> None:
    strategy: Any = create_strategy(make_space(tmp_path, {"type": "optuna", "trials": 5}))
    values = [strategy.suggest(number) for number in (1, 2, 3)]
    strategy.observe(ended(1, values[0], 0.1, 0.7, 0.6))
    strategy.observe(ended(2, values[1], 0.2, state="stopped"))
    strategy.observe(ended(3, values[2], state="failed"))
    strategy.observe(ended(4, {**values[0], "train.optimizer.lr": 0.05}, 0.3))  # of an earlier driver
    observed = strategy.study.trials
    assert [trial.state.name for trial in observed] == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    assert observed[0].value == 0.7
    assert observed[1].intermediate_values == {1: 0.2}
    assert observed[3].params["train.optimizer.lr"] == 0.05


def test_suggestions_start_with_unfinished_trials_of_an_earlier_driver(tmp_path: Path) -> None:
    space = make_space(tmp_path, {"type": "random", "trials": 4})
    trials = Trials(RunFolder(str(tmp_path / "sweep"), RunStatus("sweep", "")))
    strategy = create_strategy(space)
    for number, state in ((1, "finished"), (2, "running")):
        trial = Trial(number, strategy.suggest(number), state)  # type: ignore[arg-type]
        trials.run_folder(trial).create()
        trials.save(trial)

    again = Trials(trials.folder)
    suggestions = ResumableSearcher(
        strategy, again, lambda trial: {"number": trial.number, **trial.values}, "value", "max"
    )
    assert suggestions.num_remaining == 3
    suggested = [suggestions.suggest("x") for _ in range(4)]
    assert [config["number"] for config in suggested[:3]] == [2, 3, 4]
    assert suggested[3] == ResumableSearcher.FINISHED
    assert suggested[0] == {"number": 2, **strategy.suggest(2)}
