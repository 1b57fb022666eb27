"""What people and programs see of a sweep."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_sweeps import CONCAT, SPACE, TRANSFORMER, make_space

from rayfuse.train.runs import RunFolder, RunStatus
from rayfuse.tune.leaderboard import Leaderboard
from rayfuse.tune.live import LiveTable, PlainLines, header, row, view
from rayfuse.tune.pictures import save_pictures
from rayfuse.tune.trials import State, Trial, Trials

VALUES: list[tuple[dict[str, Any], State, list[float]]] = [
    ({"fusion": CONCAT, "train.optimizer.lr": 0.01}, "finished", [0.2, 0.5]),
    ({"fusion": TRANSFORMER, "fusion.heads": 4, "train.optimizer.lr": 0.02}, "failed", [0.9]),
    ({"fusion": TRANSFORMER, "fusion.heads": 2, "train.optimizer.lr": 0.03}, "finished", [0.3, 0.7]),
    ({"fusion": CONCAT, "train.optimizer.lr": 0.04}, "stopped", [0.1]),
    ({"fusion": CONCAT, "train.optimizer.lr": 0.05}, "running", []),
]


@pytest.fixture
def board(tmp_path: Path) -> Leaderboard:
    space = make_space(tmp_path, {"type": "random", "trials": 6})
    trials = Trials(
        RunFolder(str(tmp_path / "sweep"), RunStatus("sweep", "", tracking_run="parent", seconds=72.0))
    )
    for number, (values, state, reached) in enumerate(VALUES, start=1):
        trial = Trial(number, values, state, history=[{"answer/accuracy": value} for value in reached])
        trial.error = "the loss is nan" if state == "failed" else None
        trials.run(trial).make()
        trials.save(trial)
    return Leaderboard(space, trials, trials.folder)


def test_the_best_trial_is_one_that_did_not_fail(board: Leaderboard) -> None:
    best = board.best()
    assert best is not None
    assert best.number == 3
    assert [trial.number for trial in board.ranked] == [2, 3, 1, 4, 5]


def test_its_json_has_the_best_spec_and_every_trial(board: Leaderboard) -> None:
    data = json.loads(json.dumps(board.data()))
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
    assert board.data()["best"] is None
    assert board.first_error() == "trial 2: the loss is nan"


def test_columns_are_called_by_the_end_of_their_path(board: Leaderboard) -> None:
    assert header(board) == [
        "trial", "state", "answer/accuracy", "epochs", "seconds", "fusion", "heads", "lr", "input_dropout", "dim",
    ]  # fmt: skip
    assert row(board, board.ranked[1])[:8] == [3, "finished", "0.7000", 2, "0", "transformer", "2", "0.03"]
    assert list(SPACE) == list(board.space.sweep.space)


def test_a_terminal_gets_a_table_and_a_file_lines(board: Leaderboard) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    live = view(print, terminal)
    assert isinstance(live, LiveTable)
    live.show(board)
    live.close()
    assert "4 of 6 trials ended, 1 running; best so far: trial 3" in terminal.getvalue()

    said: list[str] = []
    plain = view(said.append, io.StringIO())
    assert isinstance(plain, PlainLines)
    plain.show(board)
    plain.show(board)
    assert len(said) == 5
    assert said[0].split() == [
        "trial", "1", "finished", "epochs", "2", "answer/accuracy", "0.5000", "fusion=concat", "lr=0.01",
    ]  # fmt: skip


def test_one_picture_per_parameter_that_was_tried(board: Leaderboard, tmp_path: Path) -> None:
    paths = save_pictures(tmp_path / "pictures", board)
    assert [path.name for path in paths] == ["fusion.png", "fusion.heads.png", "train.optimizer.lr.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20
