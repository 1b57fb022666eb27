import json

from rayfuse.tuning.leaderboard import Leaderboard


def test_the_best_trial_is_one_that_did_not_fail(board: Leaderboard) -> None:
    best = board.best()
    assert best is not None
    assert best.number == 3
    assert [trial.number for trial in board.ranked] == [2, 3, 1, 4, 5]


def test_json_has_the_best_spec_and_every_trial(board: Leaderboard) -> None:
    data = json.loads(json.dumps(board.to_dict()))
    assert (data["metric"], data["mode"], data["run_id"]) == ("answer/accuracy", "max", "parent")
    assert (data["best"]["trial"], data["best"]["value"]) == (3, 0.7)
    assert data["best"]["spec"]["fusion"]["heads"] == 2
    assert data["best"]["spec"]["train"]["optimizer"]["lr"] == 0.03
    assert [trial["state"] for trial in data["trials"]] == [
        "failed",
        "finished",
        "finished",
        "stopped",
        "running",
    ]
    assert data["trials"][0]["error"] == "the loss is nan"
    assert data["trials_per_hour"] == 4 * 3600 / 72


def test_without_a_good_trial_there_is_no_best(board: Leaderboard) -> None:
    for trial in board.trials:
        trial.state = "failed"
    assert board.best() is None
    assert board.to_dict()["best"] is None
    assert board.first_error() == "trial 2: the loss is nan"
