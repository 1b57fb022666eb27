"""Search strategies without Ray: the values of trials, and resumed sweeps."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_sweeps import CONCAT, TRANSFORMER, make_space

from rayfuse.training.runs import RunFolder, RunStatus
from rayfuse.tuning.memory_limit import MemoryLimit
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


@pytest.mark.parametrize(("trials", "n_startup_trials"), [(1, 1), (10, 3), (60, 10)])
def test_at_most_a_third_of_the_trials_of_optuna_are_random(
    tmp_path: Path, trials: int, n_startup_trials: int
) -> None:
    strategy: Any = create_strategy(make_space(tmp_path, {"type": "optuna", "trials": trials}))
    assert strategy.n_startup_trials == n_startup_trials


def test_optuna_avoids_values_that_ran_out_of_memory(tmp_path: Path) -> None:
    space = {"align.dim": {"int": [8, 512]}}
    strategy = create_strategy(make_space(tmp_path, {"type": "optuna", "trials": 60, "seed": 3}, space))
    for number in range(1, 31):
        dim = 8 + 504 * (number - 1) // 29
        trial = ended(number, {"align.dim": dim}, 0.5, state="failed" if dim > 100 else "finished")
        trial.out_of_memory = dim > 100
        strategy.observe(trial)
    suggested = [strategy.suggest(number)["align.dim"] for number in range(31, 41)]
    assert sum(dim <= 100 for dim in suggested) >= 8


@pytest.mark.parametrize("search", [{"type": "random", "trials": 40}, {"type": "optuna", "trials": 40}])
def test_trials_after_one_that_ran_out_of_memory_need_less(tmp_path: Path, search: dict[str, Any]) -> None:
    space = make_space(tmp_path, search, {"align.dim": {"choice": [8, 16, 32, 64]}})
    strategy, trials = create_strategy(space), Trials(RunFolder(str(tmp_path / "sweep"), RunStatus("s", "")))
    suggestions = ResumableSearcher(
        strategy, trials, lambda trial: {"trial": trial}, "value", "max", lambda values: values["align.dim"]
    )
    number_of_failures = 0
    for _ in range(40):
        trial = suggestions.suggest("x")["trial"]
        trial.out_of_memory = trial.values["align.dim"] > 8
        trial.state = "failed" if trial.out_of_memory else "finished"
        trial.history = [{"answer/accuracy": 0.5}]
        number_of_failures += trial.out_of_memory
        trials.run_folder(trial).create()
        trials.save(trial)
        strategy.observe(trial)
    assert number_of_failures <= 6, "one of each size, and rarely one whose draws are all too large"


def test_values_that_need_the_least_are_used_if_all_need_too_much(tmp_path: Path) -> None:
    trials = Trials(RunFolder(str(tmp_path / "sweep"), RunStatus("s", "")))
    first = Trial(1, {"align.dim": 4}, "failed", out_of_memory=True)
    trials.run_folder(first).create()
    trials.save(first)
    draws = [16, 8, 32, 8, *[64] * 20]
    limit = MemoryLimit(trials, lambda values: values["align.dim"])
    assert limit.choose(lambda attempt: {"align.dim": draws[attempt]}) == {"align.dim": 8}


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
