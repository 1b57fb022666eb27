from rayfuse.tuning.trials import Trial, rank_trials


def with_values(number: int, *values: float) -> Trial:
    return Trial(number, {}, "finished", history=[{"answer/accuracy": value} for value in values])


def test_trials_rank_by_their_best_epoch_and_those_without_a_value_last() -> None:
    trials = [with_values(1, 0.2, 0.5), with_values(2), with_values(3, 0.9, 0.1), with_values(4, 0.5)]
    assert [t.number for t in rank_trials(trials, "answer/accuracy", "max")] == [3, 1, 4, 2]
    assert [t.number for t in rank_trials(trials, "answer/accuracy", "min")] == [3, 1, 4, 2]
    nothing = Trial(5, {}, history=[{"answer/accuracy": None}])  # type: ignore[dict-item]
    assert nothing.best_value("answer/accuracy", "max") is None
